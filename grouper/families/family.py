"""Description of how one family of models stores attention: an entry of decoders.py or encoders.py."""

from dataclasses import dataclass, field, replace

from grouper.families.storage import Separate, Storage

OWN, DIVIDES = "own", "own, if they divide hidden_size"


@dataclass(frozen=True)
class Family:
    """Description of how one family stores attention. {layer} stands for the layer's number. Names are within the
    decoder, without the prefix that a checkpoint adds.

    models: usual names of the models.
    storage: the modules of q, k, v and o.
    transposed: weights are [in, out] (GPT-2's Conv1D).
    norm: the norm before the projections, by the first of these names that the checkpoint has. norm_offset is added to
        its weight, and to those of norms on q and k (Gemma's g = 1 + w).
    adds: the module whose output is added to the residual stream (default: `o`).
    qk_norm: None, "head" (each head by itself, one gain for all) or "all" (across heads, a gain for each).
    sinks: the tensor with a number for each query head that its softmax counts as one more score.
    position: kind of positions: "rope", "learned" or "alibi".
    rope: "half" (rows i and i + d/2 are a plane) or "interleaved" (2i and 2i + 1).
    rotary: the configuration's key for the rotated share of head_dim, or the number of rotated rows, if partial.
    head_dim: default if the configuration has none and the class does not use hidden_size / heads.
    classes: start of the names of its transformers classes.
    stock: whether its class supports fewer KV heads than query heads.
    padded: the class that accepts more query heads than hidden_size / head_dim: "own", "own, if they divide
        hidden_size", another class, or None. It is None if a norm spans all query heads: zero heads change its mean
        square and with it the effect of its epsilon.
    as_phi: condition for the export as Phi: "always", or a configuration key that must be true.
    approximate: the setting that makes merges approximate if they change a head's scale or basis.
    cache: tokens whose K and V an engine caches: each "token", each "source" token of cross-attention, or "none" (an
        encoder).
    behind: the norm that reads the residual stream right after attention, if there is one. Otherwise that stream is the
        layer's input plus the output of `adds`.
    renamed: start of names within the decoder or encoder in checkpoints and in the class of transformers, if these
        differ, and the same for names within a layer.
    reads: kind of calibration data: "windows" of text cut end to end (decoders), "text" in windows with the tokenizer's
        begin and end tokens, "pairs" of source and target, "pictures", or "sounds" with transcripts.
    since: first version of transformers whose class matches this description and has a selectable attention kernel.
    parts: kinds of attention of an encoder-decoder: the encoder's, the decoder's self-attention and its
        cross-attention. Each stores attention in its own way.
    source_norm: the norm before k and v in cross-attention, after the encoder's last layer.
    qk_modules: the norms on q and k, if they are not called q_norm and k_norm. qk_gains: whether these have weights.
    windowed: whether layers of the type "sliding_attention" keep the configuration's sliding_window.
    taken: number of positions of max_position_embeddings that no token can have.
    unrotated: the rule for layers without RoPE: "full_attention", layers of that type; "no_rope_layers", a list in the
        configuration whose entry is 0 for them.
    ragged: whether its class can be exported with groups of unequal sizes.
    repeats: whether a ragged export repeats K and V heads right behind their projections, because its class wants as
        many of them as query heads. For encoders alone: a cache would hold the repeated heads.
    source, config_source: modules of transformers' models that define its classes and its configuration, if they are
        not named after the type ("glm4.modeling_glm4").
    proved: whether this description was derived from the class, and proved on a small model of it.
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
    qk_modules: tuple[str, str] | None = None
    qk_gains: bool = True
    windowed: bool = False
    taken: int = 0
    unrotated: str | None = None
    ragged: bool = True
    repeats: bool = False
    source: str | None = None
    config_source: str | None = None
    proved: bool = False

    @property
    def attention(self) -> str:
        """Module that holds the projections, named within a layer."""
        shared = []
        for one, other in zip(self.storage.q.split(".")[:-1], self.storage.o.split(".")[:-1]):
            if one != other:
                break
            shared.append(one)
        return ".".join(shared)

    @property
    def norms_of_qk(self) -> tuple[str, str]:
        """Norms on q and k, named within a layer."""
        return self.qk_modules or (f"{self.attention}.q_norm", f"{self.attention}.k_norm")

    @property
    def encodes(self) -> bool:
        """Whether it is an encoder or has one."""
        return bool(self.parts) or self.cache == "none"

    @property
    def in_class(self) -> "Family":
        """Family with the names that the class of transformers uses."""
        if not self.renamed:
            return self
        storage, layer = self.storage.renamed(self.class_name), self.class_name(self.layer)
        return replace(self, storage=storage, layer=layer, renamed=())

    def class_name(self, name: str) -> str:
        """Name in the class of transformers for a name in checkpoints, which begins with `layer` or is within a
        layer."""
        for stored, called in self.renamed:
            if name.startswith(stored):
                return called + name.removeprefix(stored)
        return name

    def export_classes(self, as_phi: bool, nested: bool = False, windowed: bool = False) -> list[str]:
        """Classes that models of this family can be exported as. A layout may still be refused by one of them, e.g. for
        its padding. nested: whether the decoder is inside a larger model. windowed: whether some layers attend within a
        sliding window."""
        if nested:
            return ["stock"]
        if as_phi:
            return ["stock", "ragged"]
        padded = self.padded and not (windowed and self.padded == "llama")  # Llama has no sliding windows
        able = {"stock": self.stock, "padded": padded, "ragged": self.ragged}
        return [name for name, can in able.items() if can]

    @property
    def causal_lm(self) -> str:
        return self.head_class or f"{self.classes}ForCausalLM"
