"""Evaluation of a model: nats per token, closeness to its original, benchmark tasks."""
