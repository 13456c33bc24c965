"""Optimisers over partitions of heads: they know tables of errors, and nothing of models."""
