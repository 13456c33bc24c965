"""Options and plan of training an exported model."""

from dataclasses import dataclass, fields

from grouper.errors import GrouperError
from grouper.option_fields import option

PASSES = 12  # over a short text: more epochs overfit
TOKENS = {"cpu": 262_144, "cuda": 5_505_024}
STEP_TOKENS = {"cpu": 2048, "cuda": 8192}
NEW_WEIGHTS = ("full", "lora")
TRACKERS = ("tensorboard", "wandb", "trackio")
LARGEST_SEED = 2**64 - 1  # largest seed of torch's generators


@dataclass(frozen=True)
class Losses:
    """Weights of the losses to be summed. kl: KL divergence of our next-token distribution from the original's, in
    nats. hidden: one minus the cosine of both models' hidden states, mean over layers. causal: negative log-likelihood
    of the text's own next token, in nats. All are means over tokens."""

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
    """Options of a training. Fields left None get defaults that depend on device and text (`plan`).

    method: a name in grouper.uptraining.methods.METHODS. tokens: tokens to train on in total; a shorter text is
    repeated, at most 12 times by default. step_tokens: tokens per step of AdamW. micro_tokens: tokens per pass within a
    step (default: as memory allows). window: tokens that attend to one another.

    lr: highest learning rate, reached after the share `warm_up` of the steps and falling as a cosine to 0 (default:
    found by short trainings). clip: largest norm of a step's gradient. losses: default of the method if None. train:
    "full" weights or "lora".

    validate: number of validations during training. held_out: largest share of the text to hold out for them
    (`held_out_windows`). patience: training stops after this many validations without improvement (0: never), counted
    from the step where the rate has fallen to half its highest value. checkpointing: recompute activations instead of
    keeping them. tracker: tensorboard, wandb or trackio.
    """

    method: str = option(
        "distill",
        "Training method; all except distill follow a paper.",
        panel="Training",
        words="grouper.uptraining.methods.METHODS",
    )
    tokens: int | None = option(
        None, "Tokens to train on (default: 5.5M on GPU, 262,144 on CPU; at most 12 epochs).", panel="Training"
    )
    step_tokens: int | None = option(None, "Tokens per step (default: 8,192 on GPU, 2,048 on CPU).", panel="Training")
    micro_tokens: int | None = option(None, "Tokens per pass, if a step does not fit in memory.", panel="Machine")
    window: int = option(512, "Tokens per window.", panel="Text")
    lr: float | None = option(None, "Highest learning rate (default: found by short trainings).", panel="Training")
    warm_up: float = 0.08
    weight_decay: float = 0.0
    clip: float = 1.0
    losses: Losses | None = None
    train: str = option(
        "full",
        "Weights to train: full, or lora adapters (needs kv-grouper[lora]).",
        panel="Training",
        words=NEW_WEIGHTS,
    )
    lora_rank: int = option(32, "LoRA rank.", panel="Training")
    validate: int = 20
    held_out: float = 0.02
    patience: int = option(6, "Stop after this many validations without improvement; 0: never.", panel="Training")
    checkpointing: bool = option(False, "Recompute activations: less memory, a third more time.", panel="Machine")
    seed: int = option(0, "Random seed.", panel="Training")
    tracker: str | None = option(None, "Experiment tracker to log to.", panel="Output", words=TRACKERS)
    set: tuple[str, ...] = option(
        (), "Parameter of the training method.", panel="Training", metavar="NAME.FIELD=VALUE", several=True
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
        """Plan of the training. text_tokens: number of tokens of the text."""
        kind = "cuda" if "cuda" in device else "cpu"
        step_tokens = max(self.step_tokens or STEP_TOKENS[kind], self.window)
        tokens = max(self.tokens or min(TOKENS[kind], PASSES * text_tokens), step_tokens)
        asked = {f.name: getattr(self, f.name) for f in fields(self)}
        return UptrainPlan(**{**asked, "tokens": tokens, "step_tokens": step_tokens, "losses": self.losses or Losses()})


@dataclass(frozen=True)
class UptrainPlan(UptrainOptions):
    """Plan of a training: options with all defaults filled in, except `lr`, which short trainings may still have to
    find."""

    tokens: int = 0
    step_tokens: int = 0
    losses: Losses = Losses()

    @property
    def highest_rate(self) -> float:
        """Value of `lr`. Raises ValueError while it is not known."""
        if self.lr is None:
            raise ValueError("the rate has not been found yet")
        return self.lr

    def held_out_windows(self, windows: int) -> int:
        """Number of windows to hold out of a text of `windows` windows: the share `held_out`, limited so that all
        validations together process at most a third as many tokens as the training. A limit below 4 windows is raised
        to 4."""
        affordable = max(4, self.tokens // 3 // self.validate // self.window)
        return max(1, min(round(self.held_out * windows), affordable))

    @property
    def steps(self) -> int:
        return self.tokens // self.step_windows // self.window

    @property
    def step_windows(self) -> int:
        return self.step_tokens // self.window

    def has_fallen(self, step: int) -> bool:
        """Whether the rate at this step, after the warm-up, is at most half of the highest."""
        return step >= round(self.warm_up * self.steps) and self.rate(step) <= self.highest_rate / 2

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, then a cosine to 0."""
        from math import cos, pi

        warm = max(1, round(self.warm_up * self.steps))
        if step < warm:
            return self.highest_rate * (step + 1) / warm
        return self.highest_rate * (1 + cos(pi * (step - warm) / max(1, self.steps - warm))) / 2
