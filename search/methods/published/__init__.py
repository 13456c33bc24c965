"""Published baselines: KDGQA, DGQA, GQKVA, and keys and values grouped separately."""

from grouper.registry import Named

PUBLISHED = (
    Named("kdgqa", "search.methods.published.key_driven.KeyDriven", shares="sum"),
    Named("dgqa", "search.methods.published.key_driven.KeyDriven", shares="moving-average"),
    Named("dgqa-diff", "search.methods.published.key_driven.KeyDriven", shares="difference"),
    Named("gqkva", "search.methods.published.gqkva.GQKVA"),
    Named("separate", "search.methods.published.separate.Separate"),
)
