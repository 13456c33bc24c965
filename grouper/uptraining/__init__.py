"""Fine-tuning of an exported model on its original's outputs, to recover the quality that merging lost."""
