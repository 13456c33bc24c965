"""A transformers model at work: on batches, layer by layer, in memory or streamed from disk."""
