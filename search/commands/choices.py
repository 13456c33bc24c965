"""What the command line's words can be, for --help and for shell completion: known without importing torch."""

from collections.abc import Callable

CHOICES: dict[str, tuple[str, ...]] = {
    "method": (
        "qcqa-ac", "qcqa-ec", "exact", "asymgqa", "asymgqa-sym", "ward", "kdgqa", "dgqa", "dgqa-diff", "gqkva",
        "separate",
    ),
    "fitness": ("weight", "activation", "spectral"),
    "stage2": ("knapsack", "nsga2", "none"),
    "paper": ("qcqa", "asymgqa"),
    "acceptance": ("fitness", "loss"),
    "blocks": ("cached", "all", "encoder", "decoder", "across"),
    "merge": (
        "mean", "select", "first", "procrustes", "weighted", "weighted-column", "weighted-row", "spectral",
    ),
    "deploy": ("stock", "padded", "ragged", "any"),
    "format": ("hf", "gguf"),
    "kv_dtype": ("float32", "float16", "bfloat16", "float8", "int8"),
    "scope": ("attention", "block"),
    "train": ("full", "lora"),
    "tracker": ("tensorboard", "wandb", "trackio"),
    "uptrain method": ("distill", "gqa", "wgqa", "wgqa-column", "wgqa-row", "dgqa", "dgqa-diff", "pgqa"),
    "report format": ("png", "svg", "pdf"),
}  # fmt: skip


def choices_of(command: str, option: str) -> str | None:
    """The key of what an option's words can be: the command's own, or what it means everywhere."""
    option = option.rstrip("_")
    return next((key for key in (f"{command} {option}", option) if key in CHOICES), None)


def listed(name: str) -> str:
    """ "weight, activation or spectral" """
    *first, last = CHOICES[name]
    return f"{', '.join(first)} or {last}"


def completing(name: str) -> Callable[[str], list[str]]:
    """For shells: of several words with commas, the last."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{choice}" for choice in CHOICES[name] if choice.startswith(last)]

    return complete
