"""What raylens does from one command: explain, and the demo."""
