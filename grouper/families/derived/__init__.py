"""Families of model types without an entry: derived from the class of transformers, and proved on a small model."""
