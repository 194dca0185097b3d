"""The report of bias discovery: its page and its tables."""
