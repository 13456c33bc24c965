"""How one family of models stores attention: an entry of decoders.py or encoders.py."""

from dataclasses import dataclass, field, replace

from grouper.families.storage import Separate, Storage

OWN, DIVIDES = "own", "own, if they divide hidden_size"


@dataclass(frozen=True)
class Family:
    """How one family stores attention. {layer} is the layer's number; names are within the decoder, whatever precedes
    them in a checkpoint.

    models: names that people know it by.
    storage: the modules of q, k, v and o.
    transposed: weights are [in, out] (GPT-2's Conv1D).
    norm: what stands before the projections, the first of the names that the checkpoint has; norm_offset is added to
        its weight, and to those of norms on q and k (Gemma's g = 1 + w).
    adds: the module whose output joins the residual stream; `o` unless given.
    qk_norm: None, "head" (each head by itself, one gain for all) or "all" (across heads, a gain for each).
    sinks: the tensor with a number for each query head that its softmax counts as one more score.
    position: "rope", or what stands in its place: "learned" or "alibi".
    rope: "half" (rows i and i + d/2 are a plane) or "interleaved" (2i and 2i + 1).
    rotary: the configuration's key for the rotated share of head_dim, or the number of rotated rows, if partial.
    head_dim: where the configuration names none and the class does not divide hidden_size by heads.
    classes: how the names of its transformers classes begin.
    stock: whether its class takes fewer KV heads than query heads.
    padded: what carries more query heads than hidden_size / head_dim: "own" class, "own, if they divide hidden_size",
        another class, or None (so where a norm spans all query heads: zeros change its mean, and its epsilon then
        counts otherwise).
    as_phi: why and when it goes out as Phi: "always", or a configuration key that must be true.
    approximate: what makes merges that change a head's scale or basis approximate, if the configuration has it.
    cache: what an engine keeps K and V of: each "token", each "source" token that attention reaches across to, or
        "none" (an encoder).
    behind: where a norm gets the residual stream just behind attention, that norm; else the stream is what entered the
        layer plus what `adds` gives.
    renamed: how names within the decoder or encoder begin in checkpoints and in the class of transformers, where these
        differ, and the same of names within a layer.
    reads: what it is calibrated on: "windows" of text end to end (decoders), "text" in windows that each begin and end
        as the tokenizer does, "pairs" of source and target, "pictures", or "sounds" with words.
    since: the version of transformers whose class is as described here, and leaves attention's kernel to be chosen.
    parts: of an encoder with a decoder, their kinds of attention: the encoder's own, the decoder's own, and from the
        decoder to the encoder. Each stores attention in its own way.
    source_norm: of the latter, what stands before k and v, behind the encoder's last layer.
    """

    model_type: str
    models: str
    classes: str
    layer: str = "layers.{layer}."
    storage: Storage = field(default_factory=Separate)
    norm: tuple[str, ...] = ("input_layernorm",)
    norm_offset: float = 0.0
    adds: str | None = None
    transposed: bool = False
    qk_norm: str | None = None
    sinks: str | None = None
    position: str = "rope"
    rope: str = "half"
    rotary: str | None = None
    head_dim: int | None = None
    stock: bool = True
    padded: str | None = None
    as_phi: str | None = None
    approximate: str | None = None
    model_class: str | None = None
    config_class: str | None = None
    head_class: str | None = None
    cache: str = "token"
    behind: str | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    reads: str = "windows"
    since: str = "5.0"
    parts: tuple["Family", ...] = ()
    source_norm: str | None = None

    @property
    def attention(self) -> str:
        """The module that holds the projections, within a layer."""
        shared = []
        for one, other in zip(self.storage.q.split(".")[:-1], self.storage.o.split(".")[:-1]):
            if one != other:
                break
            shared.append(one)
        return ".".join(shared)

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder, or has one."""
        return bool(self.parts) or self.cache == "none"

    @property
    def in_class(self) -> "Family":
        """The same with the names that the class of transformers has."""
        if not self.renamed:
            return self
        storage, layer = self.storage.renamed(self.class_name), self.class_name(self.layer)
        return replace(self, storage=storage, layer=layer, renamed=())

    def class_name(self, name: str) -> str:
        """How the class calls what checkpoints call `name`, which begins with `layer` or is within a layer."""
        for stored, called in self.renamed:
            if name.startswith(stored):
                return called + name.removeprefix(stored)
        return name

    def export_classes(self, as_phi: bool, nested: bool = False, windowed: bool = False) -> list[str]:
        """The classes that models of this family can be exported as; a layout may still be refused one of them, for its
        padding say. nested: a decoder inside a larger model. windowed: some layers attend within a window."""
        if nested:
            return ["stock"]
        if as_phi:
            return ["stock", "ragged"]
        padded = self.padded and not (windowed and self.padded == "llama")  # Llama knows no windows
        return [*(["stock"] if self.stock else []), *(["padded"] if padded else []), "ragged"]

    @property
    def causal_lm(self) -> str:
        return self.head_class or f"{self.classes}ForCausalLM"
