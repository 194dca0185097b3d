"""Contracts that cross a process: job specification, Arrow schemas, run record. No torch, no Ray."""
