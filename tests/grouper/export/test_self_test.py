"""The self-test is one promise on all its paths: what is sound passes, what is not fails, whatever the model's size."""

import itertools
import json
import math
import shutil
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from export_jobs import as_if_refined, job_of
from family_samples import EQUAL, RAGGED, SAMPLES, UNEQUAL, layout_for
from safetensors.torch import load_file, save_file

from grouper import Architecture, Checkpoint, ExportOptions, GrouperError, export
from grouper.export import self_test, whole_test
from grouper.export.classes import CLASSES
from grouper.export.format import SelfTest, SelfTestFailed
from grouper.export.layer_adds import LayerAdds, difference, worst_difference
from grouper.export.part_test import run_part_test
from grouper.export.self_test import run_self_test
from grouper.export.whole_test import run_whole_test
from grouper.running.in_memory import InMemoryModel

ROWS = {"stock": EQUAL, "padded": UNEQUAL, "ragged": RAGGED}
SCOPES, DTYPES, MEMORIES = ("attention", "block"), ("float32", "bfloat16", "float16"), (4_000_000_000, 0)
EVERY = list(itertools.product(SAMPLES, ROWS, SCOPES, DTYPES, MEMORIES))


def pairwise() -> list[tuple]:
    """Each family with each class, scope, dtype and path, and each pair of these somewhere."""
    found = []
    for i, name in enumerate(SAMPLES):
        for j, kind in enumerate(ROWS):
            found.append((name, kind, SCOPES[(i + j) % 2], DTYPES[(i + j) % 3], MEMORIES[(i // 2 + j) % 2]))
    return found


@pytest.fixture(scope="session")
def typed(samples, tmp_path_factory):
    """typed("llama", "bfloat16"): the sample with weights of this type."""
    made = {}

    def get(name: str, dtype: str):
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
            shutil.copytree(samples(name), folder, dirs_exist_ok=True)
            tensors = {n: t.to(getattr(torch, dtype)) for n, t in load_file(folder / "model.safetensors").items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
            made[name, dtype] = folder
        return made[name, dtype]

    return get


def check_passes(folder, tmp_path, kind: str, scope: str, memory: int) -> None:
    options = ExportOptions(max_padding=9.0, self_test_memory=memory)
    job = as_if_refined(job_of(folder, layout_for(folder, ROWS[kind]), options), scope)
    done = export(job.checkpoint, job.layout, tmp_path / "out", merged=job.merged, options=options)
    assert done.self_test.passed and ("every layer" in done.self_test.summary) == (memory == 0)
    tensors = Checkpoint.open(tmp_path / "out").tensors
    assert done.self_test.summary.endswith(f"transformers finds all {len(tensors)} tensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name, kind, scope, dtype, memory", pairwise())
def test_what_refinement_leaves_passes(typed, tmp_path, name, kind, scope, dtype, memory):
    check_passes(typed(name, dtype), tmp_path, kind, scope, memory)


@pytest.mark.real
@pytest.mark.parametrize("name, kind, scope, dtype, memory", EVERY)
def test_every_combination_passes(typed, tmp_path, name, kind, scope, dtype, memory):
    check_passes(typed(name, dtype), tmp_path, kind, scope, memory)


PATHS = {"whole": ("llama", 4_000_000_000), "parts": ("llama", 0), "folded": ("gpt_neox", 0), "encoder": ("bert", 0)}
WRONG = {  # a tensor of each kind, by the exported names of the second layer
    "llama": {
        **{n: f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkvo"},
        "norm": "model.layers.1.post_attention_layernorm.weight", "mlp": "model.layers.1.mlp.up_proj.weight",
    },
    "gpt_neox": {
        **{n: f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkv"}, "o": "model.layers.1.self_attn.dense.weight",
        "norm": "model.final_layernorm.weight", "mlp": "model.layers.1.mlp.fc1.weight",
    },
    "bert": {
        **{n[0]: f"bert.encoder.layer.1.attention.self.{n}.weight" for n in ("query", "key", "value")},
        "o": "bert.encoder.layer.1.attention.output.dense.weight",
        "norm": "bert.encoder.layer.1.output.LayerNorm.weight",
        "mlp": "bert.encoder.layer.1.intermediate.dense.weight",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(samples, encoders, tmp_path_factory):
    """exported("parts"): the job of a path, the folder that was written, and its class."""
    made = {}

    def get(path: str):
        if path not in made:
            name, memory = PATHS[path]
            folder = encoders(name) if path == "encoder" else samples(name)
            if path == "encoder":
                a = Architecture.of(Checkpoint.open(folder).config)
                layout = replace(a.ungrouped, layers=tuple(_halved(a) for _ in range(a.layers)))
            else:
                layout = layout_for(folder, EQUAL)
            job = job_of(folder, layout, ExportOptions(self_test_memory=memory))
            out = tmp_path_factory.mktemp(path) / "out"
            done = export(job.checkpoint, layout, out, options=job.options)
            made[path] = job, out, CLASSES[done.export_class]
        return made[path]

    return get


def _halved(a: Architecture):
    from grouper.layout import LayerLayout

    return LayerLayout.from_labels([i // 2 for i in range(a.kv_heads)], 1)


def scaled(folder, target, name: str, factor: float):
    """A copy of an exported folder with one tensor scaled."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    tensors[name] = tensors[name] * factor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("what", ["q", "k", "v", "o", "norm", "mlp"])
@pytest.mark.parametrize("path", PATHS)
def test_a_hundredth_more_of_any_tensor_fails_on_every_path(exported, tmp_path, path, what):
    job, out, export_class = exported(path)
    assert run_self_test(job, out, export_class).passed
    with pytest.raises(SelfTestFailed, match="self-test"):
        run_self_test(job, scaled(out, tmp_path / "x", WRONG[PATHS[path][0]][what], 1.01), export_class)


@pytest.mark.parametrize("what", ["q", "k", "v", "o"])
@pytest.mark.parametrize("path", ["whole", "parts", "encoder"])
def test_computing_alone_notices_a_hundredth_more_of_attention(exported, tmp_path, monkeypatch, path, what):
    """Files are not compared here, as if a class computed otherwise than its weights say."""
    monkeypatch.setattr("grouper.export.written._same", lambda *_: True)
    job, out, export_class = exported(path)
    broken = scaled(out, tmp_path / "x", WRONG[PATHS[path][0]][what], 1.01)
    result = run_part_test(job, broken, export_class) if path == "parts" else run_whole_test(job, broken)
    assert not result.passed and "attention" in result.where


@pytest.mark.parametrize("what", ["norm", "mlp"])
@pytest.mark.parametrize("path", ["whole", "encoder"])
def test_computing_alone_notices_a_hundredth_more_of_the_rest(exported, tmp_path, path, what):
    job, out, _ = exported(path)
    result = run_whole_test(job, scaled(out, tmp_path / "x", WRONG[PATHS[path][0]][what], 1.01))
    assert not result.passed and "MLP and norms of " in result.where and "1" in result.where


@pytest.mark.parametrize(
    ("said", "where"),
    [({"hidden_act": "gelu"}, "the MLP and norms of layer "),
     ({"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}, "attention of layer ")],
)  # fmt: skip
def test_parts_compute_as_the_exported_configuration_says(exported, tmp_path, said, where):
    """Weights are right here, and the class is told to compute with another activation, or to rotate otherwise."""
    job, out, export_class = exported("parts")
    shutil.copytree(out, tmp_path / "x")
    config = json.loads((out / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**config, **said}))
    found = run_part_test(job, tmp_path / "x", export_class)
    assert not found.passed and found.where.startswith(where)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_lost_tensor_fails_on_every_path(samples, tmp_path, memory):
    job = job_of(samples("llama"), layout_for(samples("llama"), EQUAL), ExportOptions(self_test_memory=memory))
    export(job.checkpoint, job.layout, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GrouperError, match=r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        run_self_test(job, tmp_path / "out", CLASSES["stock"])


def test_a_tensor_too_many_fails(samples, tmp_path):
    job = job_of(samples("llama"), layout_for(samples("llama"), EQUAL))
    export(job.checkpoint, job.layout, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    save_file({**tensors, "model.extra": torch.ones(2)}, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    with pytest.raises(GrouperError, match=r"1 tensors that its class does not read, among them model\.extra"):
        run_self_test(job, tmp_path / "out", CLASSES["stock"])


# Which path, and what it says


@pytest.mark.parametrize("kind", ["decoder", "as Phi", "encoder"])
def test_models_are_compared_whole_where_memory_holds_them_in_float64(monkeypatch, kind):
    """Of 1,000 numbers: two times 8,000 bytes, three times where it goes out as Phi; encoders always. Files are
    compared first, but not a Phi's, which is compared when it is loaded."""
    called = []
    for name in ("check_written", "run_whole_test", "layers_as_models", "run_part_test"):
        found = None if name == "check_written" else SelfTest(0.0, 0, 0, told=name)
        monkeypatch.setattr(self_test, name, lambda *_, name=name, found=found: called.append(name) or found)
    monkeypatch.setattr(self_test, "check_exported", lambda _exported, _original: 7)
    architecture = SimpleNamespace(as_phi=kind == "as Phi", encodes=kind == "encoder")

    def path(memory: int, free: float) -> list[str]:
        called.clear()
        monkeypatch.setattr(self_test, "free_memory", lambda: free)
        job = SimpleNamespace(
            architecture=architecture, checkpoint=SimpleNamespace(parameters=1000),
            options=ExportOptions(self_test_memory=memory),
        )  # fmt: skip
        done = run_self_test(job, None, None)
        assert done.told == f"{called[-1]}, transformers finds all 7 tensors"
        return list(called)

    needed = 24_000 if kind == "as Phi" else 16_000
    whole = ["run_whole_test"] if kind == "as Phi" else ["check_written", "run_whole_test"]
    parts = {"decoder": ["run_part_test"], "as Phi": ["layers_as_models"], "encoder": whole}[kind]
    assert path(needed + 1, needed + 1) == whole
    assert path(needed, needed + 1) == path(needed + 1, needed) == parts


@pytest.mark.parametrize(
    ("found", "said"),
    [(SelfTest(0.5, 0, 0, where="attention of layer 1"), "attention of layer 1 differs by 0.5 of what it adds"),
     (SelfTest(0.25, 3, 16), "logits differ by 0.25, 3 of 16 greedy tokens agree"),
     (SelfTest(0.25, 0, 0), "logits differ by 0.25")],
)  # fmt: skip
def test_a_self_test_that_fails_says_what_differs(monkeypatch, found, said):
    monkeypatch.setattr(self_test, "check_written", lambda *_: None)
    monkeypatch.setattr(self_test, "check_exported", lambda *_: 7)
    monkeypatch.setattr(self_test, "run_whole_test", lambda *_: found)
    job = SimpleNamespace(architecture=SimpleNamespace(as_phi=False, encodes=True), checkpoint=None)
    with pytest.raises(SelfTestFailed) as failure:
        run_self_test(job, None, None)
    assert str(failure.value) == f"the exported model failed its self-test: {said} (at most 0.0001 expected)"


def test_layers_as_models_are_judged_by_the_worst_of_them(samples, tmp_path, monkeypatch):
    """Each is a job of one layer, which is that layer's."""
    job = job_of(samples("gpt_neox"), layout_for(samples("gpt_neox"), [[0, 0, 1, 1], [0, 1, 2, 3]]))
    found = iter([SelfTest(1e-6, 16, 16, "x", "attention of layer 0"), SelfTest(5e-6, 16, 16, "y", "MLP of layer 0")])
    cuts, layouts = [], []

    def cut(_checkpoint, architecture, layer: int, folder):
        cuts.append((architecture.family.model_type, layer))
        return SimpleNamespace(folder=folder)

    def run(one, _folder) -> SelfTest:
        layouts.extend(one.layout.layers)
        assert torch.equal(one.merged(0).attention.k, job.merged(len(layouts) - 1).attention.k)
        return next(found)

    monkeypatch.setattr(whole_test, "cut", cut)
    monkeypatch.setattr(whole_test, "run_whole_test", run)
    monkeypatch.setattr(whole_test.Checkpoint, "open", lambda _folder: None)
    result = whole_test.layers_as_models(job, tmp_path / "out")
    assert layouts == list(job.layout.layers)
    assert cuts == [("phi", 0), ("gpt_neox", 0), ("phi", 1), ("gpt_neox", 1)]
    assert (result.largest_difference, result.where, result.same_tokens) == (5e-6, "MLP of layer 1", 16)
    assert result.told.endswith("gives what the merged layer gives (largest difference 5e-06)")
    found = iter([SelfTest(1e-6, 15, 16), SelfTest(5e-6, 16, 16)])
    layouts.clear()
    assert not whole_test.layers_as_models(job, tmp_path / "out").passed, "a token differs in the better layer"


@pytest.mark.parametrize(
    ("of_layer", "of_answer", "found"),
    [(5e-5, 1e-5, (5e-5, "there")), (5e-5, 6e-5, (6e-5, "")), (2e-4, 3e-4, (2e-4, "there")),
     (5e-5, math.nan, (math.nan, "")), (math.inf, math.nan, (math.inf, "there"))],
)  # fmt: skip
def test_the_larger_difference_counts_and_a_wrong_layer_before_answers(monkeypatch, of_layer, of_answer, found):
    monkeypatch.setattr(whole_test, "LayerAdds", lambda *_: SimpleNamespace(recording=lambda _layers: nullcontext()))
    monkeypatch.setattr(whole_test, "worst_difference", lambda *_: (of_layer, "there"))
    monkeypatch.setattr(whole_test, "answer", lambda output: output)
    job = SimpleNamespace(architecture=SimpleNamespace(as_phi=False), layout=SimpleNamespace(layers=[0]))
    ours, theirs = torch.tensor([1.0, 2.0 + of_answer], dtype=torch.float64), torch.tensor([1.0, 2.0])
    result = whole_test._compared(job, lambda **_: ours, lambda **_: theirs.double(), {})
    assert result.largest_difference == pytest.approx(found[0], nan_ok=True) and result.where == found[1]
    assert result.passed == (max(of_layer, 0) < 1e-4 and of_answer < 1e-4)


def test_greedy_tokens_are_counted_one_by_one():
    tokens = [torch.arange(16), torch.arange(16)]
    tokens[1][[3, 7, 8]] = 99
    found = whole_test._with_tokens(SelfTest(2e-6, 0, 0), tokens, "logits")
    assert (found.same_tokens, found.tokens, found.passed) == (13, 16, False)
    assert found.told == "the folder gives the merged model's logits (largest difference 2e-06) and tokens"
    none = whole_test._with_tokens(SelfTest(2e-6, 0, 0), [], "answers")
    assert none.passed and none.told == "the folder gives the merged model's answers (largest difference 2e-06)"


# The measure


def test_a_difference_is_relative_to_what_a_token_gets():
    wanted = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]])
    got = wanted + torch.tensor([[[0.0, 0.5], [0.0, 0.1]]])
    assert difference(got, wanted) == pytest.approx(0.2)  # 0.1 / 0.5 is more than 0.5 / 5
    assert difference(got, wanted, rounding=0.09) == pytest.approx(0.41 / 5)  # 0.01 / 0.5 is less
    nothing = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    assert difference(nothing + torch.tensor([0.0, 1e-6]), nothing) == pytest.approx(1e-6 / 5e-3, rel=0.1)


def recorded(attention: list[float], rest: list[float], stream: float = 0.0) -> SimpleNamespace:
    """Of one token of width 2 in each of two layers, these numbers."""
    adds = [{i: torch.tensor([[[float(x), 0.0]]]) for i, x in enumerate(values)} for values in (attention, rest)]
    names = SimpleNamespace(name_of=lambda layer: f"layer {layer}")
    return SimpleNamespace(attention=adds[0], rest=adds[1], stream=dict.fromkeys(adds[0], stream), architecture=names)


def test_the_first_part_that_is_wrong_is_named_else_the_one_that_differs_most():
    """A wrong one goes on through the layers behind it and may grow there."""
    right = recorded([1, 1], [1, 1])
    assert worst_difference(recorded([1, 1.001], [1, 1.5]), right) == (
        pytest.approx(1e-3, rel=1e-3),
        "attention of layer 1",
    )
    found = worst_difference(recorded([1, 1.00002], [1.00005, 1]), right)
    assert found == (pytest.approx(5e-5, rel=1e-2), "the MLP and norms of layer 0")
    assert worst_difference(right, right) == (0.0, "")


def test_what_rounding_of_a_large_stream_leaves_of_the_rest_is_no_difference():
    """Four units in the last place of 1,000 in float32 are 4.8e-4: a difference of 4e-4 is none, of 6e-4 is 1.2e-4.
    Attention is taken as it comes, not from the stream."""
    right, off, more = (recorded([1, 1], [1, rest], stream=1000) for rest in (1, 1.0004, 1.0006))
    assert worst_difference(off, right) == (0.0, "")
    assert worst_difference(more, right) == (
        pytest.approx(6e-4 - 4 * 2**-23 * 1000, rel=1e-3),
        "the MLP and norms of layer 1",
    )
    attention = recorded([1, 1.0004], [1, 1], stream=1000)
    assert worst_difference(attention, right) == (pytest.approx(4e-4, rel=1e-3), "attention of layer 1")


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(broken):
    assert difference(torch.tensor([[broken, 1.0]]), torch.tensor([[0.0, 1.0]])) == math.inf


def test_a_fifth_of_attention_is_seen_beside_a_number_of_thousands(samples):
    """Relative to the stream it would be 8.8e-5, below the tolerance."""
    model = InMemoryModel(Checkpoint.open(samples("llama")), dtype=torch.float64)
    model.model.get_input_embeddings().weight.data[:, 5] = 5000
    tokens, found = torch.arange(3, 19)[None], []
    for factor in (1.0, 0.8):
        model.layer(0).self_attn.o_proj.weight.data *= factor
        recorder = LayerAdds(model.model, model.architecture)
        with recorder.recording([0]), torch.no_grad():
            model.model(tokens)
        found.append(recorder)
    assert float(found[1].stream[0]) > 4999
    assert difference(found[1].attention[0], found[0].attention[0]) == pytest.approx(0.2)
    assert worst_difference(found[1], found[0])[0] >= 0.2 - 1e-9


def test_what_the_layer_adds_is_split_into_attention_and_the_rest(samples):
    """Granite scales what both add by its residual_multiplier."""
    model = InMemoryModel(Checkpoint.open(samples("granite")), dtype=torch.float64)
    recorder, streams = LayerAdds(model.model, model.architecture), []
    hooks = [
        model.layer(1).register_forward_pre_hook(lambda _m, inputs: streams.append(inputs[0])),
        model.layer(1).register_forward_hook(
            lambda _m, _i, out: streams.append(out[0] if isinstance(out, tuple) else out)
        ),
        model.layer(1).mlp.register_forward_hook(lambda _m, _i, out: streams.insert(0, out)),
    ]
    with recorder.recording([1]), torch.no_grad():
        model.model(torch.arange(3, 35).view(2, 16))
    for hook in hooks:
        hook.remove()
    mlp, entered, left = streams
    assert torch.allclose(recorder.rest[1], 0.5 * mlp)
    sizes = [token.square().sum().sqrt().item() for window in entered for token in window]
    assert recorder.stream[1] == pytest.approx(max(sizes)) and recorder.attention[1].shape == entered.shape
    assert torch.allclose(recorder.attention[1], left - entered - 0.5 * mlp)
