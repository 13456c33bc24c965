"""How good a model is: nats, closeness to its original, tasks."""
