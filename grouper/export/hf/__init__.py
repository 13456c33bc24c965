"""Export to folders that transformers loads: stock, padded and ragged."""
