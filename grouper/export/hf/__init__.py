"""Folders that transformers loads: stock, padded and ragged."""
