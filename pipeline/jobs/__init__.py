"""What raylens does from one command: explain, audit, study, bias, compile, and the demo."""
