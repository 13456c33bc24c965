"""Methods that find groupings: one file each, and their registry."""
