"""Training methods as published: GQA's recipe, WGQA, DGQA, PGQA."""

from grouper.registry import Named

PUBLISHED = (
    Named("gqa", "grouper.uptraining.published.continued.Continued"),
    Named("wgqa", "grouper.uptraining.published.learned_sums.LearnedSums"),
    Named("wgqa-column", "grouper.uptraining.published.learned_sums.LearnedSums", kind="column"),
    Named("wgqa-row", "grouper.uptraining.published.learned_sums.LearnedSums", kind="row"),
    Named("dgqa", "grouper.uptraining.published.redealing.Redealing"),
    Named("dgqa-diff", "grouper.uptraining.published.redealing.Redealing", difference=True),
    Named("pgqa", "grouper.uptraining.published.perturbed.Perturbed"),
)
