"""Ways to train as they were published: GQA's recipe, WGQA, DGQA, PGQA."""
