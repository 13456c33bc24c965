"""A run on disk: its folder, its settings, its front, and the layout to take of it."""
