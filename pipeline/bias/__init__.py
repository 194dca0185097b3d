"""Bias discovery: slices that fail, what the model looked at there, and a benchmark with known truth."""
