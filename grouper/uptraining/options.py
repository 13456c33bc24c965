"""How an exported model is trained further."""

from dataclasses import dataclass, fields

from grouper.errors import GrouperError
from grouper.option_fields import option

PASSES = 12  # over a short text: more of them teach it by heart
TOKENS = {"cpu": 262_144, "cuda": 5_505_024}
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}
NEW_WEIGHTS = ("full", "lora")
TRACKERS = ("tensorboard", "wandb", "trackio")
LARGEST_SEED = 2**64 - 1  # that torch's generators take


@dataclass(frozen=True)
class Losses:
    """Weights of what is summed: kl, of the original's distribution of the next token to ours, in nats; hidden, one
    minus the cosine of both models' hidden states, mean over layers; causal, the text's own next token, in nats. All
    are means over tokens."""

    kl: float = 1.0
    hidden: float = 1.0
    causal: float = 0.0

    def __post_init__(self) -> None:
        if min(self.kl, self.hidden, self.causal) < 0 or not self.kl + self.hidden + self.causal > 0:
            raise GrouperError(
                f"loss weights kl {self.kl}, hidden {self.hidden}, causal {self.causal}: expected at least one above 0"
            )

    @property
    def needs_teacher(self) -> bool:
        return self.kl + self.hidden > 0


@dataclass(frozen=True)
class UptrainOptions:
    """Options of a training. Fields left None get defaults by device and text (`plan`).

    method: a name in grouper.uptraining.methods.METHODS. tokens: trained on, in all; the text is read again where it is
    shorter, at most 12 times unless more are asked for. step_tokens: of a step of AdamW. micro_tokens: of these, what
    is computed at once; a share of what memory holds unless given. window: tokens that see one another. lr: the highest
    rate, reached after `warm_up` of the steps and falling as a cosine to nothing; short trainings find it unless given.
    clip: largest norm of a step's gradient. losses: the method's unless given. train: "full" weights or "lora".
    validate: how often, while training. held_out: the share of the text that is for this alone, at most
    (`held_out_windows`). patience: validations without a better one before it stops (0: never), counted from where the
    rate has fallen to half of its highest. checkpointing: recompute activations instead of keeping them. tracker:
    tensorboard, wandb or trackio.
    """

    method: str = option(
        "distill",
        "Way to train; all but distill as published.",
        panel="Training",
        words="grouper.uptraining.methods.METHODS",
    )
    tokens: int | None = option(
        None, "Tokens to train on in all; 5.5M on a GPU, 262,144 on a CPU, 12 passes at most.", panel="Training"
    )
    step_tokens: int | None = option(None, "Tokens of a step; 8,192 on a GPU, 2,048 on a CPU.", panel="Training")
    micro_tokens: int | None = option(None, "Tokens of a pass, where a step does not fit at once.", panel="Machine")
    window: int = option(512, "Tokens of a window.", panel="Text")
    lr: float | None = option(None, "Highest learning rate; short trainings find it unless given.", panel="Training")
    warm_up: float = 0.08
    weight_decay: float = 0.0
    clip: float = 1.0
    losses: Losses | None = None
    train: str = option("full", "full weights, or lora (needs kv-grouper[lora]).", panel="Training", words=NEW_WEIGHTS)
    lora_rank: int = option(32, "Rank of the adapters.", panel="Training")
    validate: int = 20
    held_out: float = 0.02
    patience: int = option(6, "Validations without a better one before it stops; 0: never.", panel="Training")
    checkpointing: bool = option(False, "Less memory, a third more time.", panel="Machine")
    seed: int = option(0, "Of all chance.", panel="Training")
    tracker: str | None = option(None, "Log to this, too.", panel="Output", words=TRACKERS)
    set: tuple[str, ...] = option(
        (), "A parameter of the way to train.", panel="Training", metavar="NAME.FIELD=VALUE", several=True
    )

    def __post_init__(self) -> None:
        for name in ("tokens", "step_tokens", "micro_tokens", "window", "lora_rank"):
            value, least = getattr(self, name), 2 if name == "window" else 1
            if value is not None and value < least:
                raise GrouperError(f"`{name}={value}`: expected a number above {least - 1}")
        for name, fits, expected in (
            ("lr", self.lr is None or 0 < self.lr < 1, "a rate between 0 and 1"),
            ("clip", self.clip > 0, "a norm above 0"),
            ("weight_decay", self.weight_decay >= 0, "no negative decay"),
            ("warm_up", 0 <= self.warm_up < 1, "a share from 0 to below 1"),
            ("held_out", 0 < self.held_out < 1, "a share between 0 and 1"),
            ("validate", self.validate >= 1, "at least one validation"),
            ("patience", self.patience >= 0, "no negative number"),
            ("seed", 0 <= self.seed <= LARGEST_SEED, "a number from 0 to below 2**64"),
        ):
            if not fits:
                raise GrouperError(f"`{name}={getattr(self, name)}`: expected {expected}")
        if self.train not in NEW_WEIGHTS:
            raise GrouperError(f"`train={self.train!r}`: expected {' or '.join(NEW_WEIGHTS)}")

    def plan(self, device: str, text_tokens: int) -> "UptrainPlan":
        """Training as it will be done. text_tokens: tokens of the text."""
        kind = "cuda" if "cuda" in device else "cpu"
        step_tokens = max(self.step_tokens or STEP_TOKENS[kind], self.window)
        tokens = max(self.tokens or min(TOKENS[kind], PASSES * text_tokens), step_tokens)
        asked = {f.name: getattr(self, f.name) for f in fields(self)}
        return UptrainPlan(**{**asked, "tokens": tokens, "step_tokens": step_tokens, "losses": self.losses or Losses()})


@dataclass(frozen=True)
class UptrainPlan(UptrainOptions):
    """Training as it is done: options with all defaults filled in, but for `lr` until short trainings have found it."""

    tokens: int = 0
    step_tokens: int = 0
    losses: Losses = Losses()

    @property
    def highest_rate(self) -> float:
        """`lr`, once it is known."""
        if self.lr is None:
            raise ValueError("the rate has not been found yet")
        return self.lr

    def held_out_windows(self, windows: int) -> int:
        """Of a text of so many: its share, as far as all validations together take no more tokens than a third of what
        is trained on, but at least 4 if there are many."""
        affordable = max(4, self.tokens // 3 // self.validate // self.window)
        return max(1, min(round(self.held_out * windows), affordable))

    @property
    def steps(self) -> int:
        return self.tokens // self.step_windows // self.window

    @property
    def step_windows(self) -> int:
        return self.step_tokens // self.window

    def has_fallen(self, step: int) -> bool:
        """Whether the rate of this step is half of the highest or less, after the warm-up."""
        return step >= round(self.warm_up * self.steps) and self.rate(step) <= self.highest_rate / 2

    def rate(self, step: int) -> float:
        """Of step 0, 1, ...: linear warm-up, then a cosine to nothing."""
        from math import cos, pi

        warm = max(1, round(self.warm_up * self.steps))
        if step < warm:
            return self.highest_rate * (step + 1) / warm
        return self.highest_rate * (1 + cos(pi * (step - warm) / max(1, self.steps - warm))) / 2
