"""What every report is made of: the page's frame, numbers, tables, plots and pictures."""
