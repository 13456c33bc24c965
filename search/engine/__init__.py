"""The search itself: layers side by side, layouts of the whole model, budgets by what layers lose."""
