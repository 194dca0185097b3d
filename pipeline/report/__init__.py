"""What people look at: summaries on the terminal, overlays and contact sheets."""
