"""Steps of a training recomputed in plain torch on a model of a hundred numbers, alone and shared by ranks."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from rank_threads import side_by_side
from torch.nn.functional import cosine_similarity, cross_entropy
from toy_training import LAYOUT, Toy, ToyAccelerator, ToyStudent, toy_teacher

from grouper.calibration.text import shuffled_passes
from grouper.ranks import ALONE, Ranks
from grouper.running.batch import Batch
from grouper.uptraining.options import Losses, UptrainPlan
from grouper.uptraining.saved import SavedTraining
from grouper.uptraining.text import TrainingText
from grouper.uptraining.training import Training, micro_windows

GENERATOR = torch.Generator().manual_seed(0)
WINDOWS, WINDOW = 8, 6
TOKENS = torch.randint(0, 7, (WINDOWS, WINDOW), generator=GENERATOR)
COUNTED = torch.rand(WINDOWS, WINDOW, generator=GENERATOR) < 0.4  # chats: some windows have many answers, others few
COUNTED[:, 0], COUNTED[3] = True, False  # nothing comes before a first token; a window without answers
HELD = TrainingText(Batch.of(TOKENS.flip(1)[:3]), COUNTED[:3])
LOSSES = Losses(0.7, 1.3, 0.4)
CLIP = 1.1  # between the gradients of these steps: Adam does not care for their scale, but for some being cut


def options(**more) -> UptrainPlan:
    known = {
        "tokens": 8 * 4 * WINDOW, "step_tokens": 4 * WINDOW, "window": WINDOW, "micro_tokens": 4 * WINDOW, "lr": 0.01,
        "warm_up": 0.3, "weight_decay": 0.1, "clip": CLIP, "losses": LOSSES, "validate": 4, "patience": 0,
    }  # fmt: skip
    return UptrainPlan(**{**known, **more})


def training(folder, ranks: Ranks = ALONE, teacher: bool = True, **more) -> Training:
    asked = options(**more)
    texts = (TrainingText(Batch.of(TOKENS), COUNTED), HELD)
    taught = toy_teacher() if teacher else None
    return Training(ToyAccelerator(ranks), ToyStudent(), taught, texts, asked, SavedTraining(folder / "key"), ranks)


def loss_by_hand(model: Toy, rows: torch.Tensor, losses: Losses) -> torch.Tensor:
    """Over all tokens of these windows that count."""
    tokens, counted, teacher = TOKENS[rows], COUNTED[rows][:, 1:], Toy(1)
    ours = model(tokens).logits[:, :-1].log_softmax(-1)
    theirs = teacher(tokens).logits[:, :-1].log_softmax(-1).detach()
    kl = (theirs.exp() * (theirs - ours)).sum(-1)
    pairs = zip(model.streams(tokens), teacher.streams(tokens))
    hidden = sum(1 - cosine_similarity(a, b.detach(), dim=-1)[:, :-1] for a, b in pairs) / 2
    causal = cross_entropy(ours.transpose(1, 2), tokens[:, 1:], reduction="none")
    whole = losses.kl * kl + losses.hidden * hidden + losses.causal * causal
    return whole[counted].mean()


def trained_by_hand(order: torch.Tensor, asked: UptrainPlan) -> tuple[Toy, list[float]]:
    """AdamW from its definition (arXiv 1711.05101), gradients cut to a norm, rates by a warm-up and a cosine."""
    model, found, norms = Toy(0), [], []
    parameters = list(model.parameters())
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step, rows in enumerate(order):
        loss = loss_by_hand(model, rows, asked.losses)
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        norms.append(norm)
        warm = round(asked.warm_up * len(order))
        falling = (1 + math.cos(math.pi * (step - warm) / (len(order) - warm))) / 2
        rate = asked.lr * ((step + 1) / warm if step < warm else falling)
        with torch.no_grad():
            for p, g, m, s in zip(parameters, gradients, means, squares):
                g = g * min(1.0, asked.clip / norm)
                m += 0.1 * (g - m)
                s += 0.05 * (g * g - s)
                corrected = m / (1 - 0.9 ** (step + 1)) / ((s / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
                p -= rate * (asked.weight_decay * p + corrected)
        found.append(loss.item())
    assert min(norms) < asked.clip < max(norms) < 2 * asked.clip, norms
    return model, found


@pytest.mark.parametrize("micro", [1, 3, 4], ids=lambda n: f"{n} at once")
def test_steps_are_adamw_on_the_mean_over_the_tokens_that_count(tmp_path, micro):
    """However many windows a pass has, and however many answers are in each."""
    ours = training(tmp_path, micro_tokens=micro * WINDOW)
    wanted, losses = trained_by_hand(ours.order, ours.plan)
    assert len(losses) == 8 and ours.order.shape == (8, 4)
    assert [ours.step(step).item() for step in range(8)] == pytest.approx(losses, rel=1e-4)
    for (name, got), expected in zip(ours.student.trained(), wanted.parameters()):
        assert torch.allclose(got, expected, atol=2e-5), name


def test_ranks_take_one_step_together(tmp_path):
    """Windows with many answers and with few are shared out: the loss is that of all of them."""

    def work(ranks: Ranks) -> tuple[list[float], ToyStudent]:
        ours = training(tmp_path / str(ranks.rank), ranks, micro_tokens=WINDOW)
        return [ours.step(step).item() for step in range(8)], ours.student

    alone = training(tmp_path)
    wanted, losses = trained_by_hand(alone.order, alone.plan)
    for found, student in side_by_side(2, work):
        assert found == pytest.approx(losses, rel=1e-4)
        for (name, got), expected in zip(student.trained(), wanted.parameters()):
            assert torch.allclose(got, expected, atol=2e-5), name


@pytest.mark.parametrize("losses", [Losses(1, 0, 0), Losses(0, 1, 0), Losses(0, 0, 1)], ids=["kl", "hidden", "causal"])
def test_each_loss_alone(tmp_path, losses):
    ours = training(tmp_path, teacher=losses.needs_teacher, losses=losses)
    assert ours.step(0).item() == pytest.approx(loss_by_hand(Toy(0), ours.order[0], losses).item(), rel=1e-5)


def test_every_step_has_windows_of_its_own_until_all_were_seen():
    """Eight windows in steps of four: each pair of steps is one pass."""
    seen = Training.__new__(Training)
    seen.ranks = Ranks(1, 2)
    assert seen.mine(torch.arange(8)).tolist() == [1, 3, 5, 7]
    assert seen.mine(torch.arange(8).view(2, 4)).tolist() == [[1, 3], [5, 7]]


def lines_of(ours: Training) -> list[dict]:
    return [json.loads(line) for line in ours.saved.log.read_text().splitlines()]


def test_what_is_noted_on_the_way(tmp_path):
    """Judged before the first step and four times in eight; each with the step's own loss, rate and tokens so far."""
    ours, told = training(tmp_path), []
    _, losses = trained_by_hand(ours.order, ours.plan)
    score = ours.run(lambda done, total, note: told.append((done, total, note)))
    lines = lines_of(ours)
    judged = [line for line in lines if "held_out" in line]
    assert [line["step"] for line in judged] == [0, 2, 4, 6, 8]
    noted = [line for line in lines if "loss" in line]
    assert [line["step"] for line in noted] == [2, 4, 6, 8] and [line["tokens"] for line in noted] == [48, 96, 144, 192]
    assert [line["loss"] for line in noted] == pytest.approx(losses[1::2], rel=1e-4)
    assert [line["rate"] for line in noted] == pytest.approx([ours.plan.rate(step) for step in (1, 3, 5, 7)])
    assert [done for done, _, _ in told] == [2, 4, 6, 8] and {total for _, total, _ in told} == {8}
    assert told[0][2].startswith(f"loss {losses[1]:.4f}, ") and told[-1][2].endswith(" 0 s left")
    kls = [line["held_out"]["kl"] for line in judged]
    assert ours.reached.best == min(kls) == score.kl and ours.reached.best_step == 2 * kls.index(min(kls))
    logged = dict(ours.accelerator.logged)
    assert logged[8].keys() >= {"held_out/kl", "held_out/nll", "held_out/agreement", "held_out/teacher_nll"}


def scored(ours: Training, values: list[float]) -> None:
    """Validations give these KLs; nats that would choose otherwise."""
    left = iter(values)
    score = ours.score

    def told():
        kl = next(left)
        return type(score())(nll=1 / kl, kl=kl, agreement=0.5, teacher_nll=1.0)

    ours.score = told


def test_patience_counts_validations_since_the_rate_has_fallen(tmp_path):
    """Of eight steps two are the warm-up; after five the rate is half. What comes before, however bad, counts for
    nothing: 5 is the first that counts, 4 is better, 4 again and 6 are two in a row."""
    ours = training(tmp_path, validate=10, tokens=10 * 4 * WINDOW, warm_up=0.2, patience=2)
    assert [ours.plan.has_fallen(step) for step in range(10)] == [False] * 6 + [True] * 4
    scored(ours, [1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 5.0, 4.0, 4.0, 6.0, 7.0])
    ours.run()
    assert (ours.reached.step, ours.reached.best, ours.reached.best_step, ours.reached.waited) == (9, 1.0, 0, 2)


def test_probes_leave_nothing_but_the_rate(tmp_path):
    """Three rates of 3e-5 and below are tried, on two steps each, from the start; then the training is that of the rate
    found, as if it had been given."""
    given = training(tmp_path / "given", lr=1e-5)
    given.run()
    found, tried = training(tmp_path / "found", lr=None), []
    step, score = found.step, found.score

    def noted(number: int):
        if number == 0:
            tried.append([p.detach().clone() for p in found.parameters])
        return step(number)

    def told():
        known = {3e-5: 3.0, 1e-5: 2.0, 1e-5 / 3: 2.5}
        rate = found.plan.lr
        return score() if found.plan.steps == 8 else type(score())(1.0, known[min(known, key=lambda r: abs(r - rate))])

    found.step, found.score, found.attentions = noted, told, [Attention()]
    found.run()
    begun = [before for before, now in found.attentions[0].told if now == 1]
    assert begun == [0] * 4, "methods that count steps begin anew, too"
    assert found.plan.lr == found.reached.rate == pytest.approx(1e-5)
    assert found.reached.tried == {"3e-05": 3.0, "1e-05": 2.0, "3.33e-06": 2.5}
    assert len(tried) == 4 and all(torch.equal(a, b) for one in tried for a, b in zip(one, tried[0]))
    for (name, got), (_, expected) in zip(found.student.trained(), given.student.trained()):
        assert torch.allclose(got, expected, atol=1e-7), name
    assert [line["tried_rate"] for line in lines_of(found) if "tried_rate" in line] == pytest.approx(
        [3e-5, 1e-5, 1e-5 / 3]
    )


def test_a_rate_that_was_found_is_not_looked_for_again(tmp_path, monkeypatch):
    monkeypatch.setattr("grouper.uptraining.training.SAVING", 1e9)
    whole, killed = (training(tmp_path / name, lr=None) for name in ("whole", "killed"))
    whole.run()

    def kill(done: int, _total: int, _note: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(kill)
    again = training(tmp_path / "killed", lr=None)
    again.find_rate = lambda _tell: pytest.fail("it is known")
    again.run()
    assert again.plan.lr == whole.plan.lr and again.reached.best == whole.reached.best
    for (name, got), (_, expected) in zip(again.student.trained(), whole.student.trained()):
        assert torch.equal(got, expected), name


def test_the_best_weights_are_written_with_the_state_not_with_every_validation(tmp_path):
    ours, written = training(tmp_path), []
    keep = ours.keep
    ours.keep = lambda path, tensors, reached: (written.append((path.stem, reached.step)), keep(path, tensors, reached))
    ours.last_saved, ours.saving_took = math.inf, 0.0  # no time for a state
    scored(ours, [9.0, 8.0, 7.0, 6.0, 5.0, 5.0])
    ours.run()
    assert written == [("best", 8), ("state", 8)], "the end, whatever the time"
    ours.save()
    ours.save()
    assert written[2:] == [("state", 8)] * 2, "the best ones once"


@pytest.mark.parametrize(("keep_last", "best"), [(False, 2), (True, 8)])
def test_the_best_weights_end_in_the_student_or_the_last_ones_if_asked(tmp_path, keep_last, best):
    ours, states = training(tmp_path), {}
    ours.keep_last, step = keep_last, ours.step

    def noted(number: int):
        loss = step(number)
        states[number + 1] = ours.student.state()
        return loss

    ours.step = noted
    scored(ours, [3.0, 1.0, 2.0, 2.0, 2.0, 9.0])
    ours.run()
    assert ours.reached.best_step == best
    tensors, reached = ours.saved.load(ours.saved.best)
    assert reached.step == best and reached.layout == LAYOUT.to_json()
    for name, parameter in ours.student.trained():
        name = f"weight.{name}"
        assert torch.equal(parameter, states[best][name]) and torch.equal(tensors[name], parameter), name


class Attention:
    """Of a method that does something after steps."""

    def __init__(self):
        self.step, self.told = 0, []

    def after_step(self, step: int) -> None:
        self.told.append((self.step, step))
        self.step = step


def test_a_training_that_was_killed_goes_on_as_if_it_was_not(tmp_path, monkeypatch):
    monkeypatch.setattr("grouper.uptraining.training.SAVING", 1e9)  # at every validation
    whole = training(tmp_path / "whole")
    whole.run()
    killed = training(tmp_path / "killed")

    def kill(done: int, _total: int, _note: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(kill)
    again, steps = training(tmp_path / "killed"), []
    step, again.attentions = again.step, [Attention()]
    again.step = lambda number: steps.append(number) or step(number)
    again.run()
    assert steps == [4, 5, 6, 7], "from the last validation on"
    assert again.attentions[0].told == [(4, 5), (5, 6), (6, 7), (7, 8)], "how many steps were taken, and are now"
    assert (again.reached.best, again.reached.best_step) == (whole.reached.best, whole.reached.best_step)
    for (name, got), (_, expected) in zip(again.student.trained(), whole.student.trained()):
        assert torch.equal(got, expected), name
    logs = [t.saved.log.read_bytes() for t in (whole, again)]
    assert logs[0] == logs[1], "each step once, the one that it went on from included"


def test_saving_takes_a_tenth_of_the_time_at_most(tmp_path, monkeypatch):
    """A state that takes one second to write is written when ten have passed since the last one."""
    ours, now, saved = training(tmp_path, validate=8), [1000.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    ours.last_saved = now[0]

    def save() -> None:
        saved.append((ours.reached.step, now[0]))
        now[0] += 1
        ours.last_saved, ours.saving_took = now[0], 1.0

    step = ours.step

    def slow(number: int):
        now[0] += 4
        return step(number)

    ours.save, ours.step = save, slow
    ours.run()
    assert [at for at, _ in saved] == [1, 4, 7, 8], "at once, then after 4 + 4 + 4 s, and the end"


def test_the_time_to_come_is_that_of_its_passes(tmp_path, monkeypatch):
    """Two passes of two windows each step, and four validations of three windows, of a second and a quarter."""
    ours, took = training(tmp_path, micro_tokens=2 * WINDOW), iter([9.0, 9.0, 1.0, 0.25])
    before = {n: p.detach().clone() for n, p in ours.student.trained()}

    def seconds(call) -> float:
        call()
        return next(took)

    monkeypatch.setattr(ours, "seconds", seconds)
    assert ours.seconds_left() == pytest.approx(8 * 2 * 1.0 + 4 * 3 / 2 * 0.25)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in ours.student.trained()), "nothing is changed"
    ours.reached.step = 6
    ours.saved.save(ours.saved.state, ours.student.state(), ours.reached)
    took = iter([9.0, 9.0, 1.0, 0.25])
    assert ours.seconds_left() == pytest.approx((8 * 2 * 1.0 + 4 * 3 / 2 * 0.25) / 4), "a quarter is left"


def test_ranks_share_the_time_to_come(tmp_path):
    """Each has two windows of a step, and half of those held out."""

    def work(ranks: Ranks) -> float:
        ours, took = training(tmp_path / str(ranks.rank), ranks, micro_tokens=2 * WINDOW), iter([9.0, 9.0, 1.0, 0.25])
        ours.seconds = lambda _call: next(took)
        ours.accelerator.alone = True  # passes are timed rank by rank
        return ours.seconds_left()

    assert side_by_side(2, work) == pytest.approx([8 * 1.0 + 4 * 3 / 2 * 0.25 / 2] * 2)


def test_windows_of_one_pass():
    """Those asked for, as far as a rank has so many; a CPU takes 1,024 tokens."""
    cpu, student = torch.device("cpu"), ToyStudent()

    def found(ranks: Ranks = ALONE, **more) -> int:
        return micro_windows(student, UptrainPlan(tokens=2**20, **more), ranks, cpu)

    assert found(step_tokens=4096, window=128) == 8 and found(step_tokens=4096, window=2048) == 1
    assert found(step_tokens=4096, window=128, micro_tokens=512) == 4
    assert found(step_tokens=4096, window=128, micro_tokens=2**20) == 32
    assert found(step_tokens=4096, window=128, micro_tokens=1) == 1
    assert found(Ranks(0, 16), step_tokens=4096, window=128) == 2
    assert found(Ranks(1, 3), step_tokens=4096, window=512, micro_tokens=2**20) == 3, "8 windows over 3 ranks"


def test_windows_of_one_pass_on_a_gpu(monkeypatch):
    """A third of the free memory over what tokens take: 20 bytes of each of 7 logits, 80 of each of two layers' 4."""
    per_token = 20 * 7 + 2 * 4 * 80
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * per_token * 64 * 5.5, None))
    gpu, asked = torch.device("cuda"), UptrainPlan(tokens=2**20, step_tokens=4096, window=64)
    assert micro_windows(ToyStudent(), asked, ALONE, gpu) == 5
    per_token = 20 * 7 + 2 * 4 * 8
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * per_token * 64 * 5.5, None))
    checkpointing = UptrainPlan(tokens=2**20, step_tokens=4096, window=64, checkpointing=True)
    assert micro_windows(ToyStudent(), checkpointing, ALONE, gpu) == 5
    bare, per_token = ToyStudent(), 2 * 4 * 80
    bare.model.get_output_embeddings = lambda: None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3 * per_token * 64 * 5.5, None))
    assert micro_windows(bare, asked, ALONE, gpu) == 5, "a model without a head has no logits"


def test_windows_are_seen_in_the_order_of_the_seed_as_many_at_once_on_all_ranks(tmp_path, monkeypatch):
    assert torch.equal(training(tmp_path, seed=3).order, shuffled_passes(8, 4, 8, 3))
    monkeypatch.setattr("grouper.uptraining.training.micro_windows", lambda _s, _o, ranks, _d: 2 - ranks.rank)
    found = side_by_side(2, lambda ranks: training(tmp_path, ranks).reached.micro_windows)
    assert found == [1, 1], "as many as the one with the least memory takes"


def test_a_teacher_is_told_of_the_steps_to_come_when_it_does_not_know_one(tmp_path):
    ours, told = training(tmp_path), []
    ours.ranks = Ranks(1, 2)
    ours.teacher = SimpleNamespace(ahead=3, knows=lambda batch: len(told) > 0, prepare=told.append)
    ours.prepare_teacher(2)
    ours.prepare_teacher(3)
    assert len(told) == 1 and torch.equal(told[0].windows, TOKENS[ours.order[2:5, 1::2].flatten()])
