"""Baselines as they were published: KDGQA, DGQA, GQKVA, and keys and values grouped apart."""
