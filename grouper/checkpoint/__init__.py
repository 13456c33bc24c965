"""Checkpoints: their files, headers and tensors, read and written, checked before anything is loaded."""
