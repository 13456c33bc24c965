"""Layer-wise reconstruction after a merge."""
