"""Model families: where each one stores attention, and the facts that follow from a configuration."""
