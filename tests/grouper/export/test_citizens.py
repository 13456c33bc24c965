"""Exported models are ordinary citizens of transformers, whatever their class."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from grouper import ExportOptions, HeadLayout, export

PAIRS, UNEQUAL, FEWER = [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1]
LABELS = {"stock": [PAIRS] * 3, "padded": [UNEQUAL] * 3, "ragged": [PAIRS, UNEQUAL, FEWER]}
TOKENS = torch.randint(3, 4000, (4, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=LABELS)
def folder(request, reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("citizens") / request.param
    layout = HeadLayout.from_labels(LABELS[request.param], 8, 16)
    done = export(reader, layout, folder, merge="mean", options=ExportOptions(max_padding=1.0))
    assert done.export_class == request.param
    return folder


def load(folder, **options):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **options).eval()


def test_it_is_saved_and_loaded_again(folder, tmp_path):
    model = load(folder)
    model.save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True).save_pretrained(tmp_path / "again")
    for file in folder.glob("*.py"):
        if not (tmp_path / "again" / file.name).exists():
            (tmp_path / "again" / file.name).write_bytes(file.read_bytes())
    with torch.no_grad():
        assert torch.allclose(load(tmp_path / "again")(TOKENS).logits, model(TOKENS).logits, atol=1e-6)


def test_it_is_copied_and_pickled(folder):
    model = load(folder)
    with torch.no_grad():
        wanted = model(TOKENS).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(TOKENS).logits, wanted)


def test_it_writes_in_a_pipeline_and_in_beams(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    write = pipeline("text-generation", model=load(folder), tokenizer=tokenizer)
    (written,) = write("My fellow citizens", max_new_tokens=6, do_sample=False)
    assert written["generated_text"].startswith("My fellow citizens")
    beams = load(folder).generate(TOKENS[:1], num_beams=3, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert beams.shape[1] <= 21


def test_threads_side_by_side_answer_as_one(folder):
    model = load(folder)
    given = [torch.randint(3, 4000, (2, 16), generator=torch.Generator().manual_seed(i)) for i in range(120)]

    def one(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model(tokens).logits

    wanted = list(map(one, given))
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.allclose(g, w, atol=1e-5) for g, w in zip(pool.map(one, given), wanted))


def test_it_is_trained_by_the_trainer_and_by_low_rank_adapters(folder, tmp_path):
    peft = pytest.importorskip("peft")  # the extra `lora`
    rows = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in TOKENS.repeat(3, 1)]
    model = peft.get_peft_model(load(folder), peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    before = model(TOKENS, labels=TOKENS).loss.item()
    options = TrainingArguments(
        str(tmp_path), max_steps=5, per_device_train_batch_size=2, learning_rate=0.05, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip
    Trainer(model, options, train_dataset=rows).train()
    merged = model.merge_and_unload().eval()
    assert merged(TOKENS, labels=TOKENS).loss.item() < before


def test_it_is_compiled(folder):
    model = load(folder)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(TOKENS).logits, model(TOKENS).logits, atol=1e-5)


def test_its_weights_are_quantised_by_torch(folder, reader):
    """Eight bits on CPU, by torch itself: it loses what the original loses so."""
    lost = []
    for place in (reader, folder):
        model = load(place)
        with torch.no_grad():
            expected = model(TOKENS).logits
        quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
        with torch.no_grad():
            lost.append((quantised(TOKENS).logits - expected).norm() / expected.norm())
    assert 0 < lost[1] < 1.5 * lost[0]
