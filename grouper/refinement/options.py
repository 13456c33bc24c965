"""Refinement: the options that people give, and the plan that follows from them on a device."""

from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.option_fields import option

SCOPES = {"attention": 0.04, "block": 0.02}  # Adam's step by default: bench/refine_rates.py prints what is best
TOKENS = {"cpu": 16_384, "cuda": 393_216}
STEP_TOKENS = {"cpu": 1024, "cuda": 4096}
LONG = 0.5  # of the tokens, in long windows


@dataclass(frozen=True)
class RefineOptions:
    """Options of a refinement. Fields left None get device-dependent defaults: on a GPU more tokens, the whole block
    and larger steps.

    steps: of Adam per layer; from the number of tokens unless given. lr: Adam's step as
    a share of each tensor's root mean square, falling linearly to 0, so that the scale of a tensor does not matter; by
    scope unless given, since the best one hardly depends on the number of tokens. batch_tokens: tokens of a step.
    """

    scope: str | None = option(
        None,
        "What refinement trains: attention (default on a CPU) or block (on a GPU).",
        panel="Refinement",
        words=SCOPES,
    )
    steps: int | None = None
    lr: float | None = None
    batch_tokens: int | None = None
    seed: int = 0
    tokens: int | None = option(
        None,
        "Tokens to refine on: 393,216 on a GPU, 16,384 on a CPU, if there are as many.",
        panel="Refinement",
        name="refine_tokens",
    )
    long_share: float | None = option(
        None,
        "Share of these in windows as long as a step or the model's context; half of them by default.",
        panel="Refinement",
    )

    def __post_init__(self) -> None:
        if self.long_share is not None and not 0 <= self.long_share < 1:
            raise GrouperError(f"`long_share={self.long_share}`: expected a share from 0 to below 1")

    def plan(self, device: str) -> "RefinePlan":
        kind = "cuda" if "cuda" in str(device) else "cpu"
        scope = self.scope or ("block" if kind == "cuda" else "attention")
        return RefinePlan(
            scope, self.lr or SCOPES.get(scope, 0.0), self.batch_tokens or STEP_TOKENS[kind],
            self.tokens or TOKENS[kind], LONG if self.long_share is None else self.long_share, self.seed, self.steps,
        )  # fmt: skip


@dataclass(frozen=True)
class RefinePlan:
    """Refinement as it is done. Fields as in RefineOptions; rate: its lr."""

    scope: str
    rate: float
    batch_tokens: int
    tokens: int
    long_share: float
    seed: int = 0
    steps: int | None = None

    def plan(self, device: str) -> "RefinePlan":
        """Itself: callers may hand on options or a plan."""
        return self

    def long_window(self, window: int, context: int) -> int:
        """Tokens of a long window, a multiple of the short ones'; 0 where it would be no longer. context: of the
        model."""
        long = min(self.batch_tokens, context) // window * window if self.long_share else 0
        return long if long > window else 0

    def steps_for(self, tokens: int) -> int:
        """Steps per layer: 150 at 32k tokens, 425 at 131k, 970 at 393k, since more text supports more steps."""
        return self.steps or max(20, round(150 * (tokens / 32_768) ** 0.75))

    @property
    def key(self) -> dict[str, object]:
        """All that refined weights depend on beside model, layout, merge and text; kept refinements are named by it."""
        lr = None if self.rate == SCOPES.get(self.scope) else self.rate
        return {
            "scope": self.scope, "steps": self.steps, "lr": lr, "batch_tokens": self.batch_tokens, "seed": self.seed,
            "tokens": self.tokens,
        }  # fmt: skip


AskedRefinement = RefineOptions | RefinePlan
