"""Places of the attentions in a model."""

from dataclasses import dataclass

from grouper.families.family import Family


@dataclass(frozen=True)
class Site:
    """One attention.

    index: number among all attentions of the model. name: name for people. stack: 0, or 1 in the decoder of an
    encoder-decoder. layer: number of its layer within the stack. family: description of how its projections are stored:
    the model's family, or the family's part for this kind of attention.
    """

    index: int
    name: str
    stack: int
    layer: int
    family: Family

    @property
    def cache(self) -> str:
        """Tokens whose K and V are cached: each "token", each "source" token, or "none"."""
        return self.family.cache


Place = tuple[Site, ...]  # attentions of one layer: one, or a decoder's self-attention and cross-attention


def sites_of(family: Family, layers: int, encoder_layers: int) -> tuple[Site, ...]:
    """Attentions of a model, in order. layers: total number of attentions. encoder_layers: number of those in the
    encoder of an encoder-decoder."""
    if not family.parts:
        return tuple(Site(i, f"layer {i}", 0, i, family) for i in range(layers))
    encoder, own, across = family.parts
    found = [Site(i, f"encoder {i}", 0, i, encoder) for i in range(encoder_layers)]
    for i in range((layers - encoder_layers) // 2):
        found.append(Site(len(found), f"decoder {i}", 1, i, own))
        found.append(Site(len(found), f"decoder {i} across", 1, i, across))
    return tuple(found)
