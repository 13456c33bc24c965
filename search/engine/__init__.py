"""Engine of the search: layers in parallel, layouts of the whole model, and KV-head budgets from measured losses."""
