"""What stands around each attention of an encoder, as the modules of the real class pass it on."""

import pytest
import torch
from encoder_samples import SAMPLES, architecture_of, load

from grouper.families.encoders import ENCODERS
from grouper.model.dummy_inputs import random_inputs


def passed_on(model, inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """First inputs and outputs of norms and projections, by the modules' names."""
    entered, left, handles = {}, {}, []
    for name, module in model.named_modules():
        if "Norm" in type(module).__name__ or isinstance(module, torch.nn.Linear):

            def note(_module, given, out, name=name) -> None:
                entered[name], left[name] = given[0], out

            handles.append(module.register_forward_hook(note))
    with torch.inference_mode():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return entered, left


@pytest.mark.parametrize("name", SAMPLES)
def test_norms_are_those_that_the_streams_go_through(encoders, name):
    """norm gives q its input, from within the layer; source_norm k's, across, from behind the encoder's last layer;
    behind gets what entered plus what attention gave."""
    folder = encoders(name)
    model, a = load(folder), architecture_of(folder)
    entered, left = passed_on(model, random_inputs(model, a, 24))
    norms = [n for n in entered if not isinstance(model.get_submodule(n), torch.nn.Linear)]
    own_behind = {part.behind for part in (a.family.parts or (a.family,))}
    for layer in range(a.layers):
        family = a.sites[layer].family.in_class
        inside = family.layer.format(layer=a.sites[layer].layer)
        q = next(n for n in entered if f".{n}".endswith(f".{inside}{family.storage.q}"))
        stem = q.removesuffix(family.storage.q)
        k, o = stem + family.storage.k, stem + family.storage.o

        def gives(tensor: torch.Tensor) -> list[str]:
            return [n for n in norms if left[n].shape == tensor.shape and torch.equal(left[n], tensor)]

        before = [n.removeprefix(stem) for n in gives(entered[q]) if n.startswith(stem)]
        assert list(family.norm) == [n for n in before if n not in own_behind or n in family.norm][:1], (layer, before)
        entry = entered[stem + family.norm[0]] if family.norm else entered[q]
        stream = entry + left[o]
        after = [n for n in norms if entered[n].shape == stream.shape and torch.allclose(entered[n], stream, atol=1e-9)]
        assert after == [stem + family.behind], (layer, after)
        if family.cache == "source":
            of_source = [n for n in gives(entered[k]) if ".layers." not in f".{n}" and ".block." not in f".{n}"]
            wanted = [family.source_norm] if family.source_norm else []
            assert [".".join(n.split(".")[-2:]) for n in of_source] == wanted
        else:
            assert torch.equal(entered[q], entered[k])


def test_what_families_read_and_how_they_know_places():
    kinds = {family.model_type: (family.reads, family.position, family.since) for family in ENCODERS}
    text, pictures = ("text", "learned", "5.0"), ("pictures", "learned", "5.12")
    assert kinds == {
        "bert": text, "roberta": text, "distilbert": text, "vit": pictures, "deit": pictures,
        "t5": ("pairs", "relative", "5.15"), "mt5": ("pairs", "relative", "5.15"),
        "bart": ("pairs", "learned", "5.0"), "mbart": ("pairs", "learned", "5.0"),
        "whisper": ("sounds", "learned", "5.0"), "marian": ("pairs", "sinusoidal", "5.0"),
    }  # fmt: skip
    caches = {family.model_type: tuple(part.cache for part in family.parts) or (family.cache,) for family in ENCODERS}
    both = ("none", "token", "source")
    assert caches == {n: ("none",) if kinds[n][0] in ("text", "pictures") else both for n in kinds}
    assert not any(family.stock or family.padded for family in ENCODERS)


@pytest.mark.parametrize("name", ["t5", "mbart", "vit", "bart"])
def test_without_text_inputs_are_what_these_norms_say(encoders, name):
    """Of a norm without a bias: second moments on the diagonal as the square of its gain; with one, its square more."""
    from grouper import Checkpoint

    checkpoint, a = Checkpoint.open(encoders(name)), architecture_of(encoders(name))

    def expected(norm: str | None) -> torch.Tensor:
        if norm is None:
            return torch.ones(a.hidden_size, dtype=torch.float64)
        full = next(n for n in checkpoint.tensors if n.endswith(f"{norm}.weight"))
        bias = full.replace(".weight", ".bias")
        shift = checkpoint.tensor(bias).double() if bias in checkpoint else 0.0
        return checkpoint.tensor(full).double() ** 2 + shift**2

    def diagonal(moments) -> torch.Tensor:
        return moments.second_moment.double().diagonal()[: a.hidden_size]

    across = {
        "t5": ("decoder.block.1.layer.1.layer_norm", "encoder.final_layer_norm"),
        "mbart": ("decoder.layers.0.encoder_attn_layer_norm", "encoder.layer_norm"),
        "bart": (None, None),
    }
    if name == "vit":
        assert torch.allclose(diagonal(a.input_moments(checkpoint, 1)), expected("encoder.layer.1.layernorm_before"))
        return
    moments = a.input_moments(checkpoint, a.layers - 1)
    queries, keys = across[name]
    assert torch.allclose(diagonal(moments.of_queries), expected(queries))
    assert torch.allclose(diagonal(moments), expected(keys))
