"""Measurement of layouts and models, on text and tasks."""
