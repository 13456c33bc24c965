"""Optimisers over partitions of heads; they work on tables of errors and know nothing of models."""
