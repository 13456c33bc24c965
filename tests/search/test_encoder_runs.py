"""Whole runs on models with an encoder: search, evaluate, export, on what each of them reads."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_samples import SAMPLES, answers, architecture_of, files_for, load, make, with_reader
from safetensors.torch import load_file, save_file
from scipy.io import wavfile
from torch.nn.functional import cosine_similarity, cross_entropy

from grouper import Checkpoint, GrouperError
from grouper.calibration.calibration import Calibration
from grouper.calibration.images import numbers_of
from grouper.calibration.reading import read_examples
from grouper.calibration.source import TextSource
from grouper.refinement.options import RefineOptions
from grouper.running.batch import NOT_ASKED
from search import RunFolder, SearchOptions, Selection, evaluate, export_from_run, pick, search
from search.evaluation.models import evaluate_model
from search.runs.view import View, viewed

pytestmark = pytest.mark.drawn
QUICK = {"generations": 3, "population": 16, "tokens": 512, "window": 24}
MANY = 10**6  # windows: all that there are
KINDS = {
    "bert": "text",
    "bert-bare": "text",
    "t5": "pairs",
    "vit": "pictures",
    "vit-bare": "pictures",
    "whisper": "sounds",
}


@pytest.fixture(scope="module")
def run_of(encoders, tmp_path_factory):
    """run_of("t5"): (model, run, what it was calibrated on, what it is measured on)."""
    made = {}

    def get(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = with_reader(encoders(name), folder / "model")
            given, other = (files_for(KINDS[name], folder / part, seed) for seed, part in enumerate("ab"))
            search(model, folder / "run", SearchOptions(**QUICK, **given))
            shutil.copyfile(folder / "run" / "pareto.csv", folder / "as-searched.csv")
            made[name] = model, folder / "run", given, other
        return made[name]

    return get


def by_hand(model, source: TextSource, window: int) -> dict[str, float]:
    """What transformers itself says of the examples, one by one."""
    checkpoint, network = Checkpoint.open(model), load(model, dtype=torch.float32)
    some = read_examples(checkpoint, source, window)
    nll, right = [], []
    for i in range(len(some)):
        one = some[i : i + 1]
        with torch.inference_mode():
            if architecture_of(model).family.parts:
                nll.append(network(**one.inputs, labels=one.labels).loss.item())
                continue
            logits = network(**one.inputs).logits
        nll.append(cross_entropy(logits.flatten(0, -2), one.labels.flatten(), ignore_index=NOT_ASKED).item())
        right.append(float((logits.argmax(-1) == one.labels).float().mean()))
    return {"nll": float(np.nanmean(nll)), "accuracy": float(np.mean(right)) if right else 0.0}


@pytest.mark.parametrize("name", ["bert", "t5", "vit", "whisper"])
def test_losses_are_what_transformers_says(run_of, name):
    model, run, _given, other = run_of(name)
    source, first = TextSource(**other), RunFolder(run).front().table["layout"].max()
    front = evaluate(run, source, layouts=f"0,1,{first}", window=24, limit=MANY)
    rows = front.table.set_index("layout")
    wanted = by_hand(model, source, 24)
    assert rows.loc[0, "nll"] == pytest.approx(wanted["nll"], rel=1e-5) and rows.loc[0, "kl"] == 0
    assert rows.loc[0, "agreement"] == 1 and rows.loc[first, "kl"] > rows.loc[1, "kl"] > 0
    if name == "vit":
        assert rows.loc[0, "accuracy"] == pytest.approx(wanted["accuracy"])
    assert evaluate_model(model, source, window=24, limit=MANY).values["nll"] == pytest.approx(wanted["nll"], rel=1e-5)


@pytest.mark.parametrize("name", ["bert-bare", "vit-bare"])
def test_models_without_a_head_are_compared_by_their_vectors(run_of, tmp_path, name):
    model, run, _given, other = run_of(name)
    source, last = TextSource(**other), int(RunFolder(run).front().table["layout"].max())
    front = evaluate(run, source, layouts=f"0,1,{last}", window=24, limit=MANY)
    rows = front.table.set_index("layout")
    assert rows.loc[0, "cosine"] == pytest.approx(1) and rows.loc[last, "cosine"] < rows.loc[1, "cosine"] < 1
    export_from_run(run, tmp_path / "out", Selection(layout=last))
    some = read_examples(Checkpoint.open(model), source, 24)
    with torch.inference_mode():
        theirs, ours = (load(f, dtype=torch.float32)(**some.inputs)[0].mean(1) for f in (model, tmp_path / "out"))
    assert rows.loc[last, "cosine"] == pytest.approx(cosine_similarity(theirs, ours).mean().item(), abs=1e-5)
    assert front.judge == "cosine"


@pytest.mark.parametrize("name", KINDS)
def test_what_is_exported_is_what_was_measured(run_of, tmp_path, name):
    """With refinement on the run's own examples."""
    model, run, given, other = run_of(name)
    shutil.copytree(run, tmp_path / "run")
    calibration, refine = Calibration(TextSource(**given), 512, 24), RefineOptions("block", steps=4, tokens=256)
    number = pick(RunFolder(run).front(), "spectral+refine", kv_ratio="1/2").layout
    front = evaluate(
        tmp_path / "run", TextSource(**other), refine=refine, layouts=str(number), window=24, overwrite=True
    )
    measured = front.table[front.table["merge"] == "spectral+refine"].set_index("layout").loc[number]
    done = export_from_run(run, tmp_path / "out", Selection(layout=number), calibration, refine)
    assert done.export_class == "ragged" and torch.isfinite(answers(tmp_path / "out")).all()
    found = evaluate_model(tmp_path / "out", TextSource(**other), base=str(model), window=24)
    key = "cosine" if name.endswith("bare") else "nll"
    assert found.values[key] == pytest.approx(measured[key], rel=1e-5)
    if key == "nll":
        whole = evaluate_model(model, TextSource(**other), window=24).values["nll"]
        assert found.original["nll"] == pytest.approx(whole, rel=1e-6)


def test_the_table_says_what_is_kept_of_what(run_of):
    table = RunFolder(run_of("t5")[1]).front().table
    a = architecture_of(run_of("t5")[0])
    assert table["kv_heads"].str.startswith("8;8;").all(), "the encoder stays as it was"
    whole = table.iloc[0]
    per_token = 2 * 2 * 8 * a.head_dim * 2  # layers, K and V, heads, rows, bytes
    assert (whole["kv_bytes_per_token"], whole["kv_bytes_per_source_token"]) == (per_token, per_token)
    some = table[(table["kv_ratio"] > 0.4) & (table["kv_ratio"] < 0.6)].iloc[0]
    kept = some["kv_bytes_per_token"] + some["kv_bytes_per_source_token"]
    assert some["kv_ratio"] == pytest.approx(kept / (2 * per_token))
    assert "weight_ratio" not in table and RunFolder(run_of("t5")[1]).front().size == "kv_ratio"
    encoder = RunFolder(run_of("bert")[1]).front()
    assert (encoder.table["kv_bytes_per_token"] == 0).all() and encoder.size == "weight_ratio"
    assert encoder.table["weight_ratio"].min() == 1 / 8
    assert "weights of K and V" in (run_of("bert")[1] / "pareto.svg").read_text()


@pytest.mark.parametrize(
    ("blocks", "grouped"), [("encoder", [0, 1]), ("decoder", [2, 4]), ("across", [3, 5]), ("all", [0, 1, 2, 3, 4, 5])]
)
def test_which_attentions_are_grouped(encoders, tmp_path, blocks, grouped):
    front = search(encoders("bart"), tmp_path / "run", SearchOptions(fitness="weight", generations=2, blocks=blocks))
    fewest = front.table["kv_heads"].iloc[-1].split(";")
    assert [i for i, heads in enumerate(fewest) if heads == "1"] == grouped
    assert ("weight_ratio" in front.table) == (blocks in ("encoder", "all"))
    assert front.table["on_front"].sum() > 3


def test_a_killed_run_goes_on_to_the_same_files(run_of, tmp_path):
    model, run, given, _other = run_of("t5")
    search(model, tmp_path / "run", SearchOptions(**QUICK, **given))
    (tmp_path / "run" / "layers" / "03.csv").unlink()
    (tmp_path / "run" / "pareto.csv").unlink()
    search(model, tmp_path / "run", SearchOptions(**QUICK, **given))
    assert (tmp_path / "run" / "pareto.csv").read_text() == (run.parent / "as-searched.csv").read_text()
    for file in (f"layers/{i:02}.csv" for i in range(2, 6)):
        assert (tmp_path / "run" / file).read_text() == (run / file).read_text(), file


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("vit", {"text": "demo"}, "takes pictures: give `images=FOLDER`"),
        ("bert", {"images": "."}, "takes text"),
        ("t5", {"text": "demo"}, "no pairs"),
        ("vit", {"images": "nowhere"}, "is no folder of pictures"),
    ],
)
def test_sources_that_do_not_suit(run_of, tmp_path, name, source, words):
    with pytest.raises(GrouperError, match=words):
        search(run_of(name)[0], tmp_path / "run", SearchOptions(**QUICK, **source))
    assert not (tmp_path / "run").exists()


def test_what_decoders_alone_can_do(run_of, tmp_path):
    model, run, given, other = run_of("bert")
    with pytest.raises(GrouperError, match="in decoders alone"):
        search(model, tmp_path / "run", SearchOptions(**QUICK, **given, sensitivity=True))
    with pytest.raises(GrouperError, match="no such attention"):
        search(model, tmp_path / "run", SearchOptions(**QUICK, **given, blocks="across"))
    from grouper.evaluation.tasks import TaskOptions

    with pytest.raises(GrouperError, match="tasks are for decoders"):
        evaluate(run, TextSource(**other), tasks=TaskOptions(("piqa",)))


def test_a_sound_outside_its_folder_is_refused(run_of, tmp_path):
    model = run_of("whisper")[0]
    (tmp_path / "pairs.tsv").write_text("../elsewhere.wav\twords\n")
    with pytest.raises(GrouperError, match="outside the folder"):
        read_examples(Checkpoint.open(model), TextSource(str(tmp_path / "pairs.tsv")), 24)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("bert", {"limit": -1}, "at least 2 tokens and 1 window"),
        ("t5", {"window": 0}, "at least 2 tokens and 1 window"),
        ("bert", {"limit": 0}, "at least 2 tokens and 1 window"),
    ],
)
def test_sizes_that_make_no_sense(run_of, name, options, words):
    model, _run, _given, other = run_of(name)
    with pytest.raises(GrouperError, match=words):
        read_examples(Checkpoint.open(model), TextSource(**other), **{"window": 24, "limit": None, **options})


def test_files_that_make_no_sense(run_of, tmp_path):
    whisper, t5, vit = (Checkpoint.open(run_of(name)[0]) for name in ("whisper", "t5", "vit"))
    wavfile.write(tmp_path / "empty.wav", 16_000, np.zeros(0, np.float32))
    wavfile.write(tmp_path / "nan.wav", 16_000, np.full(100, np.nan, np.float32))
    wavfile.write(tmp_path / "long.wav", 16_000, np.zeros(40_000, np.float32))
    for name in ("empty", "nan", "long"):
        (tmp_path / "one.tsv").write_text(f"{name}.wav\twords\n")
        with pytest.raises(GrouperError, match="empty, damaged or longer than 1 s"):
            read_examples(whisper, TextSource(str(tmp_path / "one.tsv")), 24)
    (tmp_path / "tabs.tsv").write_text("a\tb\tc\n")
    for source in (TextSource(str(tmp_path / "tabs.tsv")), TextSource("wikitext"), TextSource("demo")):
        with pytest.raises(GrouperError, match="pair"):
            read_examples(t5, source, 24)
    (tmp_path / "pictures" / "one").mkdir(parents=True)
    with pytest.raises(GrouperError, match="no pictures in folders of classes"):
        read_examples(vit, TextSource(images=str(tmp_path / "pictures")), 24)
    (tmp_path / "pictures" / "one" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(GrouperError, match="cannot read the picture"):
        read_examples(vit, TextSource(images=str(tmp_path / "pictures")), 24)
    processor = Path(vit.folder) / "preprocessor_config.json"
    shutil.copytree(vit.folder, tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(processor.read_text().replace("16", "32"))
    given = TextSource(**files_for("pictures", tmp_path / "good"))
    with pytest.raises(GrouperError, match="gives pictures of 32x32, the model takes 16"):
        read_examples(Checkpoint.open(tmp_path / "vit"), given, 24)
    assert numbers_of(vit, ["LABEL_3", "label_0"]) == {"LABEL_3": 3, "label_0": 0}
    assert numbers_of(vit, ["a", "b", "c", "d", "e"])["e"] == 4, "as many as the model has, in their order"
    with pytest.raises(GrouperError, match="name the folders as the model names its classes"):
        numbers_of(vit, ["a", "b"])
    two = Checkpoint.open(tmp_path / "vit")
    two._config = {n: v for n, v in two.config.items() if n not in ("id2label", "label2id")}
    assert numbers_of(two, ["cat", "dog"]) == {"cat": 0, "dog": 1}, "transformers leaves two labels out"


def test_a_decoder_takes_no_pictures(tmp_path):
    with pytest.raises(GrouperError, match="demo takes text"):
        search("demo", tmp_path / "run", SearchOptions(images=str(tmp_path)))


def test_an_encoder_that_has_a_decoder_is_picked_by_weights(encoders, tmp_path):
    options = SearchOptions(fitness="weight", generations=2, blocks="encoder")
    front = search(encoders("bart"), tmp_path / "run", options)
    found = pick(front, "mean", kv_ratio="5/6")
    assert found.row["weight_ratio"] == pytest.approx(5 / 6, abs=0.005) and found.row["kv_ratio"] == 1
    assert viewed(front, View(best_under="5/6"))["layout"].tolist() == [found.layout]
    with pytest.raises(GrouperError, match="choose by --kv-ratio"):
        pick(front, "mean", kv_bytes_per_token=10**6)


def test_other_heads_are_compared_with_the_original(tmp_path):
    family, options, _saved = SAMPLES["bert"]
    for saved in ("BertForQuestionAnswering", "BertForSequenceClassification", "BertForTokenClassification"):
        make(tmp_path / "raw" / saved, family, options, saved)
        model = with_reader(tmp_path / "raw" / saved, tmp_path / saved)
        text = files_for("text", tmp_path / f"{saved}-text")
        search(model, tmp_path / f"{saved}-run", SearchOptions(fitness="weight", generations=2, window=24, tokens=480))
        front = evaluate(tmp_path / f"{saved}-run", TextSource(**text), layouts="0,5,20", window=24)
        rows = front.table.dropna(subset="kl").set_index("layout")
        assert rows.loc[0, "kl"] == 0 and rows.loc[20, "kl"] > rows.loc[5, "kl"] > 0 and front.judge == "kl"
    make(tmp_path / "raw" / "choice", family, options, "BertForMultipleChoice")
    model = with_reader(tmp_path / "raw" / "choice", tmp_path / "choice")
    with pytest.raises(GrouperError, match="can be grouped without text"):
        read_examples(Checkpoint.open(model), TextSource(**text), 24)


def test_checkpoints_that_hold_buffers(run_of, tmp_path):
    """As those of sentence-transformers do."""
    model, _run, given, other = run_of("bert-bare")
    shutil.copytree(model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    search(tmp_path / "model", tmp_path / "run", SearchOptions(**{**QUICK, "fitness": "weight"}, **given))
    export_from_run(tmp_path / "run", tmp_path / "out", Selection(kv_ratio="1/2"))
    found = evaluate_model(tmp_path / "out", TextSource(**other), base=str(tmp_path / "model"), window=24)
    assert 0 < found.values["cosine"] < 1
