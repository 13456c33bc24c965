"""Supported encoders and encoder-decoders. None of their classes supports fewer KV heads than query heads."""

from dataclasses import replace
from functools import partial
from typing import Any

from grouper.families.family import Family
from grouper.families.storage import Separate

encoder = partial(Family, position="learned", stock=False, norm=(), cache="none", reads="text")
bert = partial(
    encoder, layer="encoder.layer.{layer}.", behind="attention.output.LayerNorm",
    storage=Separate("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
)  # fmt: skip
vit = partial(
    encoder, layer="encoder.layer.{layer}.", norm=("layernorm_before",), behind="layernorm_after", reads="pictures",
    since="5.12",
    storage=Separate(
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense",
    ),
    renamed=(
        ("encoder.layer.", "layers."), ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"), ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
    ),
)  # fmt: skip


def encoder_decoder(model_type: str, models: str, classes: str, parts: tuple[dict, dict, dict], **more: Any) -> Family:
    """Family of an encoder-decoder. parts: fields that differ for the encoder's attention, the decoder's self-attention
    and its cross-attention."""
    family = Family(model_type, models, classes, stock=False, **{"reads": "pairs", **more})
    caches = ("none", "token", "source")
    return replace(family, parts=tuple(replace(family, **part, cache=cache) for part, cache in zip(parts, caches)))


def bart(norm_first: bool) -> tuple[dict, dict, dict]:
    """Parts of a BART-like family. norm_first: whether norms come before attention, as in mBART and Whisper, or after
    the sum."""
    own, across, last = "self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"
    source_norm = "encoder.layer_norm" if norm_first else None
    norms = ((own, last), (own, across), (across, last)) if norm_first else ((None, own), (None, own), (None, across))
    places = (
        ("encoder.layers.{layer}.", "self_attn"), ("decoder.layers.{layer}.", "self_attn"),
        ("decoder.layers.{layer}.", "encoder_attn"),
    )  # fmt: skip
    first, second, third = (
        {
            "layer": layer,
            "storage": Separate.within(module, "out_proj"),
            "norm": (norm,) if norm else (),
            "behind": behind,
        }
        for (layer, module), (norm, behind) in zip(places, norms)
    )
    return first, second, {**third, "source_norm": source_norm}


def t5() -> tuple[dict, dict, dict]:
    def part(stack: str, place: int, module: str) -> dict:
        storage = Separate(*(f"layer.{place}.{module}.{n}" for n in "qkvo"))
        norm, behind = f"layer.{place}.layer_norm", f"layer.{place + 1}.layer_norm"
        return {"layer": stack + ".block.{layer}.", "storage": storage, "norm": (norm,), "behind": behind}

    across = {**part("decoder", 1, "EncDecAttention"), "source_norm": "encoder.final_layer_norm"}
    return part("encoder", 0, "SelfAttention"), part("decoder", 0, "SelfAttention"), across


ENCODERS = (
    bert("bert", "BERT, MiniLM, BGE, E5, GTE", "Bert"),
    bert("roberta", "RoBERTa, CodeBERT", "Roberta", taken=2),
    encoder(
        "distilbert", "DistilBERT", "DistilBert", layer="transformer.layer.{layer}.",
        storage=Separate(*(f"attention.{n}_lin" for n in ("q", "k", "v", "out"))), behind="sa_layer_norm",
    ),
    vit("vit", "ViT", "ViT"),
    vit("deit", "DeiT", "DeiT"),
    encoder_decoder("t5", "T5, Flan-T5", "T5", t5(), position="relative", since="5.15"),
    encoder_decoder("mt5", "mT5", "MT5", t5(), position="relative", since="5.15"),
    encoder_decoder("bart", "BART", "Bart", bart(norm_first=False), position="learned"),
    encoder_decoder("mbart", "mBART", "MBart", bart(norm_first=True), position="learned"),
    encoder_decoder("whisper", "Whisper", "Whisper", bart(norm_first=True), position="learned", reads="sounds"),
    encoder_decoder("marian", "Marian, OPUS-MT", "Marian", bart(norm_first=False), position="sinusoidal"),
)  # fmt: skip
