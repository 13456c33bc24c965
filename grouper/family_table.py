"""What `grouper inspect --families` prints: each family, how exact merges are in it, and what it can be exported as."""

from dataclasses import dataclass

from grouper.families import FAMILIES, REFUSED, Family


@dataclass(frozen=True)
class FamilyRow:
    """reason: why not, where it is not supported. merges: how exact they are. classes: of exports."""

    family: str
    models: str
    supported: bool
    reason: str
    merges: str
    classes: list[str]


def family_table() -> list[FamilyRow]:
    rows = [FamilyRow(f.model_type, f.models, True, "", merges(f), classes(f)) for f in FAMILIES.values()]
    return rows + [FamilyRow(name, "", False, why, "", []) for name, why in sorted(REFUSED.items(), key=lambda item: (item[1], item[0]))]


def merges(family: Family) -> str:
    """What a basis that is free means for K, in a few words; V's always is."""
    if family.qk_norm == "head":
        text = "K behind its norm: weighted mean, no basis is free; V exact"
    elif family.qk_norm == "all":
        text = "K behind its norm: real factors per plane, its size approximate; V exact"
    elif family.position != "rope":
        text = "exact; K as V"
    elif family.rotary:
        text = "exact; K per plane, its unrotated rows as V"
    else:
        text = "exact; K per plane"
    text += "; as V in layers without RoPE" if family.model_type == "smollm3" else ""
    return text + (f"; approximate with {family.approximate}" if family.approximate else "")


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
    carriers = {"mistral": "padded (as Mistral)", "llama": "padded (as Llama)", "own, if they divide hidden_size": "padded (if heads divide)"}
    return [carriers.get(family.padded, name) if name == "padded" else name for name in open_classes(family, False)]
