"""The explanation graph and the jobs that stream images through it."""
