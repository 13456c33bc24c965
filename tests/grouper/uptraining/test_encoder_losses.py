"""What models with an encoder learn and are judged by, recomputed of each example alone, without its filling."""

from types import SimpleNamespace

import pytest
import torch
from encoder_samples import architecture_of, examples, load, with_heads
from rank_threads import side_by_side
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from toy_training import ToyAccelerator

from grouper import Checkpoint, GrouperError
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import NOT_ASKED, Batch
from grouper.running.in_memory import InMemoryModel
from grouper.running.streamed import StreamedModel
from grouper.uptraining.options import Losses, UptrainPlan
from grouper.uptraining.saved import SavedTraining
from grouper.uptraining.teacher import StreamedTeacher, Teacher, masks_of
from grouper.uptraining.text import TrainingText, places_of
from grouper.uptraining.training import Training
from grouper.uptraining.validation import Score, score_of

STACKS = {
    "bert": ["bert.encoder.layer"], "bert-bare": ["encoder.layer"], "vit": ["vit.layers"],
    "t5": ["encoder.block", "decoder.block"], "bart": ["model.encoder.layers", "model.decoder.layers"],
}  # fmt: skip
LOSSES = Losses(0.7, 1.3, 0.4)


class Pair:
    """A model beside its original, which has other heads, and what both say of a few examples."""

    def __init__(self, name: str, original, folder):
        self.original, self.folder = original, folder
        self.batch = examples(original)
        self.text = TrainingText.of(self.batch, places_of(Checkpoint.open(original), self.batch))
        networks = [load(place, dtype=torch.float32) for place in (folder, original)]
        self.said = [[alone(network, name, self.batch, i) for network in networks] for i in range(len(self.batch))]

    def model(self, place) -> InMemoryModel:
        return InMemoryModel(Checkpoint.open(place))

    def training(self, folder, losses: Losses, **more) -> Training:
        loaded, window = self.model(self.folder), self.batch.tokens
        loaded.model.requires_grad_(True)
        student = SimpleNamespace(
            loaded=loaded, model=loaded.model, architecture=loaded.architecture, attentions=[],
            trained=loaded.model.named_parameters, buffers=dict,
        )  # fmt: skip
        options = UptrainPlan(tokens=16 * window, step_tokens=4 * window, window=window, lr=0.01, losses=losses)
        taught, saved = Teacher(self.model(self.original)), SavedTraining(folder)
        return Training(ToyAccelerator(), student, taught, (self.text, self.text), options, saved, ALONE)


@pytest.fixture(scope="module")
def pairs(encoders, tmp_path_factory):
    made = {}

    def get(name: str) -> Pair:
        if name not in made:
            other = tmp_path_factory.mktemp(name) / "other"
            made[name] = Pair(name, encoders(name), with_heads(encoders(name), other, lambda _, h: (h + h.flip(0)) / 2))
        return made[name]

    return get


def alone(network: nn.Module, name: str, batch: Batch, i: int) -> SimpleNamespace:
    """Of one example without filling: logits of the answers asked for, the right ones and their places, the streams
    behind all layers, the vector."""
    inputs = {n: t[i : i + 1] for n, t in batch.inputs.items()}
    mask, labels = inputs.pop("attention_mask", None), None if batch.labels is None else batch.labels[i].view(-1)
    if mask is not None:
        inputs["input_ids"] = inputs["input_ids"][:, : int(mask.sum())]
    asked = None if labels is None else (labels != NOT_ASKED).nonzero()[:, 0]
    if len(STACKS[name]) == 2:
        inputs["labels"] = labels[asked][None]
    streams: list[Tensor] = []
    for layer in (layer for stack in STACKS[name] for layer in network.get_submodule(stack)):
        keep = lambda _m, _i, output: streams.append(output[0] if isinstance(output, tuple) else output)  # noqa: E731
        layer.register_forward_hook(keep)
    with torch.inference_mode():
        output = network(**inputs)
    for layer in (layer for stack in STACKS[name] for layer in network.get_submodule(stack)):
        layer._forward_hooks.clear()
    if asked is None:
        return SimpleNamespace(logits=None, asked=torch.tensor([0]), streams=streams, vector=output[0][0].mean(0))
    logits = output.logits[0].view(-1, output.logits.shape[-1])
    logits = logits if len(STACKS[name]) == 2 else logits[asked]
    return SimpleNamespace(logits=logits, asked=asked, right=labels[asked], streams=streams)


def apart(ours: SimpleNamespace, theirs: SimpleNamespace) -> Tensor:
    """Of hidden states: mean over an example's tokens, then over layers."""
    pairs = zip(ours.streams, theirs.streams)
    return torch.stack([1 - cosine_similarity(a[0], b[0], dim=-1).mean() for a, b in pairs]).mean()


def measures(ours: SimpleNamespace, theirs: SimpleNamespace) -> dict[str, Tensor]:
    """Of every answer that is asked for."""
    if ours.logits is None:
        return {"cosine": cosine_similarity(ours.vector, theirs.vector, dim=0)[None]}
    q, p = ours.logits.double().log_softmax(-1), theirs.logits.double().log_softmax(-1)
    return {
        "nll": cross_entropy(q, ours.right, reduction="none"),
        "teacher_nll": cross_entropy(p, ours.right, reduction="none"),
        "kl": (p.exp() * (p - q)).sum(-1),
        "agreement": (q.argmax(-1) == p.argmax(-1)).double(),
    }


def losses_by_hand(pair: Pair, losses: Losses) -> Tensor:
    """[n, places], 0 where nothing is asked."""
    wanted = torch.zeros(pair.text.counted.shape, dtype=torch.float64)
    for i, both in enumerate(pair.said):
        found = measures(*both)
        of_answers = losses.kl * found["kl"] + losses.causal * found["nll"] if "kl" in found else 0
        wanted[i, both[0].asked] = of_answers + losses.hidden * apart(*both).double()
    return wanted


@pytest.mark.parametrize("name", STACKS)
def test_losses_are_those_of_each_example_without_its_filling(pairs, tmp_path, name):
    """Of masked positions alone, of a class, of the words to be written alone; hidden states of what is no filling, in
    both stacks alike."""
    pair = pairs(name)
    with torch.no_grad():
        found = pair.training(tmp_path, LOSSES).loss_of(torch.arange(len(pair.batch)))
    wanted = losses_by_hand(pair, LOSSES)
    assert found.shape == wanted.shape and torch.allclose(found.double(), wanted, atol=2e-5)
    assert torch.equal(found != 0, pair.text.weights) and wanted.max() > 1e-3


@pytest.mark.parametrize("name", STACKS)
def test_a_step_takes_the_mean_over_the_answers_of_all_its_examples(pairs, tmp_path, name):
    """However many each has, and however few examples a pass takes."""
    pair = pairs(name)
    ours, wanted = pair.training(tmp_path, LOSSES), losses_by_hand(pair, LOSSES)
    ours.reached.micro_windows = 3
    rows = ours.order[0]
    mean = wanted[rows].sum() / pair.text.weights[rows].sum()
    assert len(rows) == 4 and ours.step(0).item() == pytest.approx(mean.item(), rel=1e-4)


@pytest.mark.parametrize("size", [1, 4], ids=lambda n: f"{n} ranks")
@pytest.mark.parametrize("name", STACKS)
def test_scores_are_means_over_the_answers_asked_for(pairs, tmp_path, name, size):
    """Of six examples four ranks have two each, and the last one none of its own."""
    pair = pairs(name)
    ours = pair.training(tmp_path, LOSSES)
    every = [measures(*both) for both in pair.said]
    wanted = {kind: torch.cat([found[kind] for found in every]).mean().item() for kind in every[0]}

    def score(ranks: Ranks) -> Score:
        return score_of(ours.answers_of, ours.teacher, pair.text, 4, torch.device("cpu"), ranks)

    for found in side_by_side(size, score):
        got = {kind: value for kind, value in vars(found).items() if value == value}
        assert got == pytest.approx(wanted, rel=1e-4)
        assert found.judged(LOSSES) == (1 - found.cosine if name == "bert-bare" else found.kl)


@pytest.mark.parametrize("hidden", [True, False], ids=["hidden states", "answers alone"])
@pytest.mark.parametrize("name", [*STACKS, "whisper"])
def test_a_streamed_teacher_says_what_one_in_memory_does(encoders, name, hidden):
    """Of examples in another order than those it was told of."""
    checkpoint = Checkpoint.open(encoders(name))
    batch, streamed = examples(encoders(name)), StreamedTeacher(StreamedModel(checkpoint, "cpu"), hidden, 1)
    streamed.prepare(batch[:5])
    assert streamed.knows(batch[[4, 1]]) and not streamed.knows(batch[4:])
    some, layers = batch[[4, 0, 2]], len(architecture_of(encoders(name)).places)
    ours, theirs = (t.answers(some, hidden, "cpu") for t in (streamed, Teacher(InMemoryModel(checkpoint))))
    assert len(streamed.streams) == (layers if hidden else 1)
    assert len(ours.hidden) == len(theirs.hidden) == (layers if hidden else 0)
    for a, b, mask in zip(ours.hidden, theirs.hidden, masks_of(streamed.model, some)):
        mask = torch.ones(a.shape[:2], dtype=torch.bool) if mask is None else mask
        assert a.shape == b.shape and torch.allclose(a[mask], b[mask], atol=1e-4)
    kind = "vectors" if name == "bert-bare" else "logits"
    assert torch.allclose(getattr(ours, kind), getattr(theirs, kind), atol=1e-4)
    assert getattr(ours, "logits" if kind == "vectors" else "vectors") is None


def test_an_example_with_other_answers_is_another_one(encoders):
    """A model that writes reads its answers, too."""
    batch = examples(encoders("t5"))
    streamed = StreamedTeacher(StreamedModel(Checkpoint.open(encoders("t5")), "cpu"), False, 1)
    streamed.prepare(batch)
    other = Batch(batch.inputs, batch.labels.clone(), batch.tokens)
    other.labels[2, 0] += 1
    assert streamed.knows(other[:2]) and not streamed.knows(other[:3])


@pytest.mark.parametrize("losses", [Losses(1, 0, 0), Losses(0, 0, 1), Losses(1, 0, 1)], ids=["kl", "causal", "both"])
def test_a_model_without_a_head_learns_hidden_states_or_nothing(pairs, tmp_path, losses):
    with pytest.raises(GrouperError, match=r"without a head learns hidden states alone \(`hidden`\)"):
        pairs("bert-bare").training(tmp_path, losses).loss_of(torch.arange(2))
