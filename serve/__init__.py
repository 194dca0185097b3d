"""The online service on Ray Serve."""
