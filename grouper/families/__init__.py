"""Families of models: where each keeps its attention, and what follows from a configuration."""
