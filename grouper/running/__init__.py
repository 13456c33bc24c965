"""Running a transformers model: on batches, layer by layer, in memory or streamed from disk."""
