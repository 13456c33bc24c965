"""What `grouper inspect --families` prints: each family, how exact merges are in it, and what it can be exported as."""

from dataclasses import dataclass

from grouper.merging import MERGES
from grouper.model.families import FAMILIES, REFUSED, Family


@dataclass(frozen=True)
class FamilyRow:
    """reason: why not, where it is not supported. merges, fitness: by name, "exact" or "approximate": whether the exported model does what the
    closed form says. note: where and why not. classes: of exports.
    """

    family: str
    models: str
    supported: bool
    reason: str
    merges: dict[str, str]
    fitness: dict[str, str]
    note: str
    classes: list[str]


def family_table() -> list[FamilyRow]:
    rows = [FamilyRow(f.model_type, f.models, True, "", *exactness(f), classes(f)) for f in FAMILIES.values()]
    return rows + [
        FamilyRow(name, "", False, why, {}, {}, "", [])
        for name, why in sorted(REFUSED.items(), key=lambda item: (item[1], item[0]))
    ]


def exactness(family: Family) -> tuple[dict[str, str], dict[str, str], str]:
    """(merges, fitnesses, note). What folds into q and o is exact unless a norm or a clamp stands between."""
    approximate: set[str] = set()
    if family.qk_norm == "head":
        approximate = {"weighted", "procrustes", "spectral"}
        note = "norms on q and k leave no basis of K free: spectral takes the weighted mean behind them, procrustes rotates V alone"
    elif family.qk_norm == "all":
        approximate = {"mean", "first", "select", "weighted", "procrustes", "spectral"}
        note = "a norm across heads changes with them, in the mean restored: spectral takes real factors of K's planes, procrustes rotates V alone"
    elif family.position != "rope":
        note = "K as V: no RoPE"
    elif family.rotary:
        note = "K per RoPE plane, its unrotated rows as V"
    else:
        note = "K per RoPE plane"
    note += ", as V in layers without RoPE" if family.model_type == "smollm3" else ""
    if family.approximate:
        note += f"; with {family.approximate}, what changes a basis is approximate"
    merges = {name: "approximate" if name.partition("-")[0] in approximate else "exact" for name in MERGES}
    fitness = {"weight": "exact", "activation": "exact", "spectral": merges["spectral"]}
    return merges, fitness, note


def open_classes(family: Family, as_phi: bool) -> list[str]:
    """The classes of exports that a model of this family has."""
    if as_phi:
        return ["stock", "ragged"]
    return [*(["stock"] if family.stock else []), *(["padded"] if family.padded else []), "ragged"]


def classes(family: Family) -> list[str]:
    """The same, with the class that carries it where that is another one."""
    if family.as_phi:
        when = "" if family.as_phi == "always" else f", with {family.as_phi}"
        return [f"stock (as Phi{when})", "ragged"]
    carriers = {
        "mistral": "padded (as Mistral)",
        "llama": "padded (as Llama)",
        "own, if they divide hidden_size": "padded (if heads divide)",
    }
    return [carriers.get(family.padded, name) if name == "padded" else name for name in open_classes(family, False)]


def markdown(rows: list[FamilyRow]) -> str:
    """Two tables: what is supported, and what is not and why."""
    able, unable = [r for r in rows if r.supported], [r for r in rows if not r.supported]
    reasons: dict[str, list[str]] = {}
    for row in unable:
        reasons.setdefault(row.reason, []).append(f"`{row.family}`")
    return "\n".join([
        "| family | models | merges and fitnesses | how | exports |", "| --- | --- | --- | --- | --- |",
        *(f"| `{r.family}` | {r.models} | {_summary(r.merges)} | {r.note} | {', '.join(r.classes)} |" for r in able), "",
        "| refused | because |", "| --- | --- |", *(f"| {', '.join(names)} | {why} |" for why, names in reasons.items()),
    ])  # fmt: skip


def _summary(merges: dict[str, str]) -> str:
    exact = [name for name, how in merges.items() if how == "exact"]
    if len(exact) == len(merges):
        return "all exact"
    return f"{', '.join(exact)} exact, others approximate" if exact else "approximate"
