"""Layouts and models, measured on text and by tasks."""
