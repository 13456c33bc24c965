"""Ways to find groupings: one file each, and their registry."""
