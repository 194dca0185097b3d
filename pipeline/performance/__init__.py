"""How right a run's predictions are, and how well its confidence says so: sums that add up over files."""
