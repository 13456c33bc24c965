"""Runs as if they had been searched and measured, so that their numbers are known."""

from pathlib import Path

from grouper import HeadLayout, LayerLayout
from search import RunFolder, SearchOptions
from search.methods.candidate import Candidate
from search.runs.pareto import ParetoFront, Scored
from search.runs.settings import RunSettings

OWN, TWO, OTHER, ONE = [0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]
SEARCHED = (("original", 0.0, OWN), ("qcqa-ac", 0.5, TWO), ("qcqa-ac", 2.0, ONE), ("neighbour", 3.0, ONE))


def made_up_run(
    path: Path,
    layouts: list[Scored],
    options: SearchOptions | None = None,
    model: str = "nowhere/tiny",
    fingerprint: str = "f",
    found: list[dict[str, list[Candidate]]] | None = None,
    command: str | None = None,
    **columns: list,
) -> RunFolder:
    """layouts: the rows of pareto.csv. found: of each layer, what stage 1 would have written. columns: measurements, by
    the name of their column."""
    folder, options = RunFolder(path), options or SearchOptions()
    for name in ("layers", "layouts"):
        (path / name).mkdir(parents=True)
    folder.write_settings(RunSettings(options, model, None, fingerprint, command=command))
    for number, scored in enumerate(layouts):
        folder.layout_path(number).write_text(scored.layout.to_json())
    for layer, candidates in enumerate(found or []):
        folder.write_layer(layer, candidates)
    front = ParetoFront.of(layouts, options.kv_dtype)
    for column, values in columns.items():
        front.table[column] = values
    front.mark()
    front.write(path / "pareto.csv")
    return folder


def scored(*rows: tuple, layers: int = 1, query_heads: int = 4, head_dim: int = 8, merge: str = "mean") -> list[Scored]:
    """rows: (method, error, label of each KV head), every layer alike."""
    return [
        Scored(HeadLayout.from_labels([labels] * layers, query_heads, head_dim), method, error, merge)
        for method, error, labels in rows
    ]


def of_encoder(*rows: tuple) -> list[Scored]:
    """Rows (error, labels of the encoder, of the decoder, across) of a model with an attention of each kind."""
    return [
        Scored(
            HeadLayout(tuple(map(LayerLayout.from_labels, labels)), 4, 4, 8, ("none", "token", "source")),
            "qcqa-ac" if error else "original", error, "mean",
        )
        for error, *labels in rows
    ]  # fmt: skip
