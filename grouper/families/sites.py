"""Where the attentions of a model are."""

from dataclasses import dataclass

from grouper.families.family import Family


@dataclass(frozen=True)
class Site:
    """One attention.

    index: among all of the model's. name: for people. stack: 0, or 1 in the decoder of a model that has an encoder,
    too. layer: the number of its layer within the stack. family: how its
    projections are stored: the model's family, or its part for this kind of attention.
    """

    index: int
    name: str
    stack: int
    layer: int
    family: Family

    @property
    def cache(self) -> str:
        """What K and V are kept of: each "token", each "source" token, or "none"."""
        return self.family.cache


Place = tuple[Site, ...]  # the attentions of one layer: one, or a decoder's own and the one across to the encoder


def sites_of(family: Family, layers: int, encoder_layers: int) -> tuple[Site, ...]:
    """layers: attentions in all; encoder_layers: those of an encoder that has a decoder."""
    if not family.parts:
        return tuple(Site(i, f"layer {i}", 0, i, family) for i in range(layers))
    encoder, own, across = family.parts
    found = [Site(i, f"encoder {i}", 0, i, encoder) for i in range(encoder_layers)]
    for i in range((layers - encoder_layers) // 2):
        found.append(Site(len(found), f"decoder {i}", 1, i, own))
        found.append(Site(len(found), f"decoder {i} across", 1, i, across))
    return tuple(found)
