"""Every encoder, with a decoder or without, through everything."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from encoder_samples import SAMPLES, answers, architecture_of, examples, load, with_heads
from rank_threads import side_by_side

from grouper import Architecture, Checkpoint, GrouperError, HeadLayout, export
from grouper.calibration.moments import collect_moments
from grouper.compress import Regrouper
from grouper.evaluation.closeness import Original, closeness_of
from grouper.export import export_model
from grouper.families.encoders import ENCODERS
from grouper.families.inspection import inspect
from grouper.layout import groups_of
from grouper.merging import MERGES
from grouper.merging.folding import augmented
from grouper.model.auto import auto_class
from grouper.model.dummy_inputs import answer, random_inputs
from grouper.ranks import Ranks
from grouper.refinement.layer import LayerWorker
from grouper.refinement.options import RefineOptions
from grouper.refinement.refine import refine_layers
from grouper.running.batch import Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.streamed import StreamedModel
from grouper.uptraining.exported import ExportedModel
from grouper.uptraining.methods import METHODS
from grouper.uptraining.student import Student
from search import RunFolder, SearchOptions, pick, search

UNEVEN = ([0, 0, 1, 0, 2, 2, 2, 0], [0, 1, 1, 0, 1, 0, 1, 1], [0, 1, 2, 3, 0, 1, 2, 3])
DECODES = [
    name for name, (family, *_) in SAMPLES.items() if family in ("t5", "mt5", "bart", "mbart", "whisper", "marian")
]


def layout_of(folder) -> HeadLayout:
    """Other groups in every attention."""
    a = architecture_of(folder)
    return HeadLayout.from_labels([UNEVEN[i % 3] for i in range(a.layers)], a.query_heads, a.head_dim)


def test_every_encoder_has_a_sample():
    assert {family for family, *_ in SAMPLES.values()} == {family.model_type for family in ENCODERS}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("merge", ["mean", "spectral"])
def test_the_identity_grouping_is_the_original(encoders, tmp_path, name, merge):
    folder = encoders(name)
    done = export(folder, architecture_of(folder).ungrouped, tmp_path / "out", merge=merge)
    saved = load(tmp_path / "out").config.auto_map[done.loader]
    assert (done.export_class, saved) == ("ragged", f"modeling_ragged.Ragged{SAMPLES[name][2]}")
    assert (answers(tmp_path / "out") - answers(folder)).abs().max() < 1e-4


@pytest.mark.parametrize("name", SAMPLES)
def test_groups_are_the_index_gather_reference(encoders, tmp_path, name):
    """The original class, every KV head of a group replaced by the group's mean; with each kernel."""
    folder = encoders(name)
    layout = layout_of(folder)
    export(folder, layout, tmp_path / "out")

    def mean(layer: int, heads: torch.Tensor) -> torch.Tensor:
        out = heads.clone()
        for sources in layout.layers[layer].k.members:
            out[list(sources)] = heads[list(sources)].mean(0)
        return out

    wanted = answers(with_heads(folder, tmp_path / "reference", mean))
    assert (wanted - answers(folder)).abs().max() > 0.01, "grouping changes something"
    assert (answers(tmp_path / "out") - wanted).abs().max() < 1e-6
    assert (answers(tmp_path / "out", attn_implementation="eager") - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", [n for n in SAMPLES if SAMPLES[n][0] not in ("vit", "deit", "whisper")])
def test_what_fills_short_examples_up_changes_nothing(encoders, tmp_path, name):
    folder = encoders(name)
    export(folder, layout_of(folder), tmp_path / "out")
    model, some = load(tmp_path / "out"), examples(folder)
    decodes = name in DECODES
    with torch.inference_mode():
        whole = model(**some.called_with("cpu", torch.float64, decodes))
        for i in range(len(some)):
            length = int(some.inputs["attention_mask"][i].sum())
            alone = {n: t[i : i + 1, :length] for n, t in some.inputs.items()}
            if decodes:
                written = int((some.labels[i] >= 0).sum())
                got = model(**alone, labels=some.labels[i : i + 1, :written]).logits[0]
                wanted = whole.logits[i, :written]
            else:
                got, wanted = model(**alone)[0][0], whole[0][i]
                wanted = wanted[: len(got)]
            assert torch.allclose(got, wanted, atol=1e-9)


@pytest.mark.parametrize("name", DECODES)
def test_caches_hold_the_layouts_heads(encoders, tmp_path, name):
    folder = encoders(name)
    layout, a = layout_of(folder), architecture_of(folder)
    done = export(folder, layout, tmp_path / "out")
    model = load(tmp_path / "out")
    out = model(**random_inputs(model, a, 24), use_cache=True)[1]
    kept = {"token": out.self_attention_cache.layers, "source": out.cross_attention_cache.layers}
    wanted = {"token": [], "source": [], "none": []}
    for layer, one in enumerate(layout.layers):
        wanted[a.caches[layer]].append(one.k.kv_heads)
    assert {kind: [layer.keys.shape[1] for layer in layers] for kind, layers in kept.items()} == {
        kind: wanted[kind] for kind in kept
    }
    assert done.kv_bytes_per_token[1] == 2 * 2 * a.head_dim * sum(wanted["token"])
    assert done.kv_bytes_per_source_token[1] == 2 * 2 * a.head_dim * sum(wanted["source"])
    assert done.self_test.tokens == 16


@pytest.mark.parametrize("name", SAMPLES)
def test_a_planted_grouping_is_found_and_lossless(encoders, tmp_path, name):
    folder, generator = encoders(name), torch.Generator().manual_seed(3)
    a = architecture_of(folder)
    labels = [(torch.randperm(8, generator=generator) // 2).tolist() for _ in range(a.layers)]
    planted = with_heads(folder, tmp_path / "planted", lambda layer, heads: heads[labels[layer]])
    options = SearchOptions(generations=4, population=16, fitness="weight", blocks="all")
    front = search(planted, tmp_path / "run", options)
    found = pick(front, "mean", kv_ratio="1/2")
    layout = RunFolder(tmp_path / "run").layout(found.layout)
    assert [layer.k.members for layer in layout.layers] == [groups_of(row) for row in labels]
    assert found.row["weight_ratio"] == 0.5 and front.size == "weight_ratio"
    wanted = answers(planted)
    for merge in ("mean", "spectral"):
        export(planted, layout, tmp_path / merge, merge=merge)
        assert (answers(tmp_path / merge) - wanted).abs().max() < 1e-4, merge


@pytest.mark.parametrize("name", SAMPLES)
def test_moments_are_of_what_the_heads_read(encoders, name):
    """Keys by hook on the real module are keys by the weights that we read, filling left out; across, q reads the
    decoder."""
    folder = encoders(name)
    checkpoint, some = Checkpoint.open(folder), examples(folder)
    model = InMemoryModel(checkpoint)
    a = model.architecture
    tokens = {
        "token": int((some.labels >= 0).sum()) if name in DECODES else 0,
        "none": len(some) * {"whisper": 50, "deit": 18}.get(name, 17) if some.read is None else int(some.read.sum()),
    }  # fmt: skip
    tokens["source"] = tokens["none"]
    for layer, moments in enumerate(collect_moments(model, some)):
        attention = a.read(checkpoint, layer)
        cache = a.family_of(layer).cache
        k = augmented(attention.projection("k"))
        expected = torch.einsum("gdx,xy,hdy->gh", k, moments.second_moment, k) * tokens[cache]
        assert moments.tokens == tokens[cache]
        assert torch.allclose(moments.keys.sum(0).double(), expected, rtol=1e-4, atol=1e-3)
        assert (moments.queries is not None) == (cache == "source")
        if moments.queries is not None:
            assert moments.queries.tokens == tokens["token"]
            assert not torch.allclose(moments.queries.second_moment, moments.second_moment)


def errors_of(model: InMemoryModel, layout: HeadLayout, merged, some: Batch) -> float:
    """Of the whole model's answers, relative."""
    given = some.called_with("cpu", torch.float32, bool(model.architecture.family.parts))
    with torch.no_grad():
        wanted = answer(model.model(**given))
        with model.installed(layout, merged) as installed:
            got = answer(installed(**given))
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_what_refinement_believes_is_what_the_model_computes(encoders, monkeypatch, name):
    """The streams that are carried from layer to layer are those of the model with what was refined installed; also
    where a layer's second attention is not improved, and keeps what the first one trained."""
    folder = encoders(name)
    checkpoint, some, layout = Checkpoint.open(folder), examples(folder, 8), layout_of(folder)
    model, believed = InMemoryModel(checkpoint), []
    start = Regrouper(checkpoint).merged(layout, MERGES["spectral"].before_refinement())
    steps = LayerWorker.descend
    monkeypatch.setattr(
        LayerWorker, "descend",
        lambda self, *given: None if self.site.cache == "source" else steps(self, *given),
    )  # fmt: skip
    advance = LayerWorker.advance

    def noted(self, module, step, sides) -> None:
        advance(self, module, step, sides)
        if step is sides.ours:
            believed.append(step.walk.stream.clone())

    monkeypatch.setattr(LayerWorker, "advance", noted)
    options = RefineOptions("block", steps=6, batch_tokens=64)
    layers = refine_layers(model, layout, start, some, options)
    found = []
    places = dict.fromkeys(model.layer(i) for i in range(len(layout.layers)))
    for place in places:
        place.register_forward_hook(lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad(), model.installed(layout, layers) as installed:
        installed(**some.called_with("cpu", torch.float32, True))
    for ours, wanted in zip(believed, found):
        assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-4)
    assert any(layers(i).others for i in range(len(layout.layers)))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("scope", ["attention", "block"])
def test_refinement_brings_every_attention_nearer(encoders, tmp_path, name, scope):
    folder = encoders(name)
    checkpoint, some, layout = Checkpoint.open(folder), examples(folder, 16), layout_of(folder)
    ours, options = Regrouper(checkpoint), RefineOptions(scope, steps=8, batch_tokens=64)
    start = ours.merged(layout, MERGES["spectral"].before_refinement())
    model = InMemoryModel(checkpoint)
    layers = refine_layers(model, layout, start, some, options, folder=tmp_path / "kept")
    done = [layers(i) for i in range(len(layout.layers))]
    assert all(layer.after <= layer.before for layer in done) and any(layer.after < layer.before for layer in done)
    assert errors_of(model, layout, layers, some) < errors_of(model, layout, start, some)
    exported = export(folder, layout, tmp_path / "out", merge="spectral+refine", merged=layers)
    assert exported.self_test.passed and torch.isfinite(answers(tmp_path / "out")).all()
    again = refine_layers(model, layout, start, some, options, folder=tmp_path / "kept")
    assert torch.equal(again(0).attention.k, layers(0).attention.k), "what is done is kept"


@pytest.mark.parametrize("name", ["bert", "distilbert", "vit", "t5", "bart", "whisper"])
@pytest.mark.parametrize("training", ["distill", "wgqa-row", "pgqa", "dgqa"])
def test_students_train_and_come_out_as_they_are(encoders, tmp_path, name, training):
    """Every parameter is pushed a little; the folder that is written computes what the student did."""
    folder = encoders(name)
    a = architecture_of(folder)
    layout = HeadLayout.from_labels([[h // 4 for h in range(8)]] * a.layers, a.query_heads, a.head_dim)
    export(folder, layout, tmp_path / "start")
    student = Student(ExportedModel.open(tmp_path / "start", str(folder)), METHODS.named(training), "cpu")
    some = examples(folder)
    given = some.called_with("cpu", torch.float32, name in DECODES)
    first = answer(student.model(**given)).detach()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in student.trained():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    answer(student.model(**given)).square().mean().backward()
    assert all(p.grad is not None for one in student.attentions for _, p in one.own_parameters())
    with torch.no_grad():
        wanted = answer(student.model(**given))
    assert (wanted - first).abs().max() > 0.01
    base, around = student.exported.base, student.around()
    export_model(base, student.layout, tmp_path / "end", merge=training, merged=student.layer, around=around)
    with torch.no_grad():
        got = answer(load(tmp_path / "end", dtype=torch.float32)(**given))
    assert torch.allclose(got, wanted, atol=1e-3), (got - wanted).abs().max()


@pytest.mark.parametrize("name", ["bert", "vit", "t5", "t5-uneven", "bart", "whisper"])
def test_an_encoder_that_is_streamed_goes_the_same_way(encoders, name):
    """Moments, refinement and what is measured, from a model that is read layer by layer."""
    folder = encoders(name)
    checkpoint, some, layout = Checkpoint.open(folder), examples(folder, 8), layout_of(folder)
    start = Regrouper(checkpoint).merged(layout, MERGES["spectral"].before_refinement())
    found = []
    for kind in (InMemoryModel, StreamedModel):
        model = kind(checkpoint)
        moments = [m.second_moment for m in collect_moments(model, some)]
        refined = refine_layers(model, layout, start, some, RefineOptions("block", steps=3, batch_tokens=64))
        weights = [refined(i).attention.k for i in range(len(layout.layers))]
        found.append((moments + weights, closeness_of(model, Original.of(model, some), layout, refined)))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0]))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("name", ["bert", "t5"])
@pytest.mark.parametrize("scope", ["attention", "block"])
def test_ranks_refine_an_encoder_as_one_does(encoders, tmp_path, name, scope):
    folder = encoders(name)
    some, layout = examples(folder, 8), layout_of(folder)
    start = Regrouper(Checkpoint.open(folder)).merged(layout, MERGES["spectral"].before_refinement())
    options, models = (
        RefineOptions(scope, steps=4, batch_tokens=64),
        [InMemoryModel(Checkpoint.open(folder)) for _ in range(3)],
    )
    wanted = refine_layers(models[2], layout, start, some, options)

    def work(ranks: Ranks):
        return refine_layers(models[ranks.rank], layout, start, some, options, folder=tmp_path / "kept", ranks=ranks)

    for layers in side_by_side(2, work):
        for i in range(len(layout.layers)):
            ours, alone = layers(i), wanted(i)
            assert torch.allclose(ours.attention.k, alone.attention.k, rtol=1e-3, atol=1e-4)
            assert ours.after == pytest.approx(alone.after, rel=1e-3) and ours.others.keys() == alone.others.keys()


def test_every_head_of_the_family_loads(encoders, tmp_path):
    folder = encoders("bert")
    export(folder, layout_of(folder), tmp_path / "out")
    names = load(tmp_path / "out").config.auto_map
    assert {"AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"} <= names.keys()
    for auto in (n for n in names if n not in ("AutoConfig", "AutoModelForMultipleChoice")):
        assert torch.isfinite(answers(tmp_path / "out", auto)).all(), auto


def test_an_exported_folder_is_saved_and_loaded_again(encoders, tmp_path):
    for name in ("bert", "vit", "t5"):
        export(encoders(name), layout_of(encoders(name)), tmp_path / name)
        load(tmp_path / name).save_pretrained(tmp_path / f"{name}-again")
        again = answers(tmp_path / f"{name}-again")
        assert torch.allclose(again, answers(tmp_path / name), rtol=0, atol=1e-9), name


def test_shared_query_projections(encoders, tmp_path):
    """GQKVA: fewer heads in q than in o."""
    from search.methods.published.gqkva import GQKVA

    for name in ("vit", "bert", "t5"):
        folder = encoders(name)
        search(folder, tmp_path / name, SearchOptions(method=(GQKVA().name,), fitness="weight", blocks="all"))
        run = RunFolder(tmp_path / name)
        number = next(i for i in run.front().table["layout"] if any(one.q for one in run.layout(i).layers))
        assert export(folder, run.layout(number), tmp_path / f"{name}-out").self_test.passed


def test_inspect_says_what_there_is(encoders):
    bert, t5 = (inspect(Checkpoint.open(encoders(name))) for name in ("bert", "t5"))
    assert (bert.layers, bert.kv_bytes_per_token, bert.export_classes) == (2, 0, ["ragged"])
    assert (t5.layers, t5.kv_bytes_per_token) == (6, 2 * 2 * 8 * 16 * 2)


def test_a_transformers_that_is_too_old_is_named(encoders, monkeypatch):
    monkeypatch.setattr("transformers.__version__", "5.8.1")
    Regrouper(Checkpoint.open(encoders("bert")))
    with pytest.raises(GrouperError, match=r"t5 models need transformers 5\.15 or later"):
        Regrouper(Checkpoint.open(encoders("t5")))


def test_threads_side_by_side_answer_as_one(encoders, tmp_path):
    folder = encoders("bert")
    export(folder, layout_of(folder), tmp_path / "out")
    model = load(tmp_path / "out")
    given = [torch.randint(3, 199, (2, 24), generator=torch.Generator().manual_seed(i)) for i in range(120)]
    with torch.inference_mode():
        wanted = [model(input_ids=ids).logits for ids in given]

    def one(ids: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=ids).logits

    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(one, given), wanted):
            assert torch.allclose(got, expected, atol=1e-9)


def test_half_of_an_encoder_and_a_decoder_is_refused(encoders):
    config = {**Checkpoint.open(encoders("t5")).config, "architectures": ["T5EncoderModel"]}
    with pytest.raises(GrouperError, match="half of an encoder and a decoder"):
        Architecture.of(config)
    assert auto_class({"model_type": "bert", "architectures": ["BertForPreTraining"]}) == "AutoModelForMaskedLM"
