"""Runs on disk: their folder, settings and front, and the choice of a layout."""
