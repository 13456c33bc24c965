"""An export scales keys with spikes; what it computes stays, bit for bit where numbers are kept in bfloat16."""

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import add_tokenizer, edit_weights, logits, make_model

from grouper import Calibration, Checkpoint, ExportOptions, RefineOptions, TextSource
from grouper.export.check import check_folder
from search import RunFolder, SearchOptions, Selection, export_from_run, search

TOKENS = torch.randint(3, 190, (2, 40), generator=torch.Generator().manual_seed(2))


def spikes(tensors: dict) -> None:
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[3], tensor[3 + 16] = 150.0, -150.0  # a plane of the first head of 32
        tensors[name] = tensor.bfloat16()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a Qwen2 of 4 query heads over 4 KV heads whose biases on k have spikes."""
    folder = tmp_path_factory.mktemp("spiked")
    plain = make_model(folder / "plain", "qwen2", heads=4, hidden_size=128, head_dim=32, vocab_size=4096)
    model = add_tokenizer(edit_weights(plain, folder / "model", spikes))
    config = model / "config.json"
    config.write_text(config.read_text().replace("float32", "bfloat16"))
    search(model, folder / "run", SearchOptions(fitness="weight", generations=2, population=8))
    return folder / "run"


def keys(folder) -> dict[str, torch.Tensor]:
    return {n: t for n, t in load_file(folder / "model.safetensors").items() if ".k_proj." in n}


def exported(run, out, selection: Selection, gauge: bool = True, **options):
    options = ExportOptions(kv_gauge=gauge, max_padding=9.0, **options)
    done = export_from_run(run, out, selection, options=options)
    assert done.self_test.passed
    return out


def test_a_model_that_keeps_its_heads_is_scaled(run, tmp_path):
    """In bfloat16 not a bit of a logit changes; without the option not a bit of a weight does."""
    scaled = exported(run, tmp_path / "scaled", Selection(layout=0))
    plain = exported(run, tmp_path / "plain", Selection(layout=0), gauge=False)
    model = RunFolder(run).settings.open_checkpoint().folder
    assert all(torch.equal(t, keys(model)[n]) for n, t in keys(plain).items())
    found = keys(scaled)
    bias = found["model.layers.0.self_attn.k_proj.bias"]
    assert bias.abs().max() < 75 and bias.dtype == torch.bfloat16
    assert torch.equal(logits(scaled, TOKENS), logits(plain, TOKENS))
    assert check_folder(scaled, str(model)).passed


@pytest.mark.parametrize("deploy", ["stock", "ragged", "padded"])
def test_every_class_goes_through_it(run, tmp_path, deploy):
    table = RunFolder(run).front().table
    found = table[(table["deploy"] == deploy) & (table["kv_ratio"] < 1)]
    if found.empty:
        pytest.skip(f"no {deploy} layout was found")
    selection = Selection(layout=int(found["layout"].iloc[0]))
    scaled, plain = (exported(run, tmp_path / str(gauge), selection, gauge) for gauge in (True, False))
    assert any(not torch.equal(t, keys(plain)[n]) for n, t in keys(scaled).items())
    difference = (logits(scaled, TOKENS) - logits(plain, TOKENS)).abs().max()
    assert difference < 1e-5 * logits(plain, TOKENS).abs().max()


def test_what_was_refined_goes_through_it(run, tmp_path):
    calibration = Calibration(TextSource("demo"), tokens=256, window=64)
    refine = RefineOptions(tokens=256, steps=2)
    half = Selection(kv_ratio="1/2", deploy="stock")
    outs = []
    for gauge in (True, False):
        outs.append(tmp_path / f"refined-{gauge}")
        done = export_from_run(run, outs[-1], half, calibration, refine, ExportOptions(kv_gauge=gauge))
        assert done.self_test.passed
    assert any(not torch.equal(t, keys(outs[1])[n]) for n, t in keys(outs[0]).items())
    wanted = logits(outs[1], TOKENS)
    assert (logits(outs[0], TOKENS) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert Checkpoint.open(outs[0]).config["num_key_value_heads"] == 2


def test_a_gguf_holds_scaled_keys(run, tmp_path):
    gguf = pytest.importorskip("gguf")
    read = {}
    for gauge in (True, False):
        out = exported(run, tmp_path / str(gauge), Selection(layout=0), gauge, format="gguf", dtype="float32")
        reader = gguf.GGUFReader(next(out.glob("*.gguf")))
        read[gauge] = {t.name: torch.tensor(t.data.copy()) for t in reader.tensors}
    name = "blk.0.attn_k.bias"
    assert read[True][name].abs().max() < 0.5 * read[False][name].abs().max()
