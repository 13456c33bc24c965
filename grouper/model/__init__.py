"""Reading models: where their bytes come from, what their configuration says, and how they run in memory."""
