"""Options of refinement, and the plan that follows from them on a device."""

from dataclasses import dataclass

from grouper.errors import GrouperError
from grouper.option_fields import option

SCOPES = {"attention": 0.04, "block": 0.02}  # Adam's default step: bench/refine_rates.py measures the best one
TOKENS = {"cpu": 16_384, "cuda": 393_216}
STEP_TOKENS = {"cpu": 1024, "cuda": 4096}
LONG = 0.5  # share of the tokens in long windows


@dataclass(frozen=True)
class RefineOptions:
    """Options of refinement. Fields left None get device-dependent defaults: on a GPU more tokens, the whole block and
    larger steps.

    steps: steps of Adam per layer (default: depends on the number of tokens). lr: step of Adam as a share of each
    tensor's root mean square, so that the scale of a tensor does not matter; it falls linearly to 0 (default: depends
    on the scope, since the best value hardly depends on the number of tokens). batch_tokens: tokens per step.
    """

    scope: str | None = option(
        None,
        "Scope of refinement: attention (default on a CPU) or block (default on a GPU).",
        panel="Refinement",
        words=SCOPES,
    )
    steps: int | None = None
    lr: float | None = None
    batch_tokens: int | None = None
    seed: int = 0
    tokens: int | None = option(
        None,
        "Number of tokens to refine on (default: up to 393,216 on a GPU, 16,384 on a CPU).",
        panel="Refinement",
        name="refine_tokens",
    )
    long_share: float | None = option(
        None,
        "Share of refinement tokens read in long windows, of a step's tokens or the model's context (default: 0.5).",
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
    """Settings of a refinement with all defaults filled in. Fields as in RefineOptions; rate: its lr."""

    scope: str
    rate: float
    batch_tokens: int
    tokens: int
    long_share: float
    seed: int = 0
    steps: int | None = None

    def plan(self, device: str) -> "RefinePlan":
        """Return itself, so that callers may pass options or a plan."""
        return self

    def long_window(self, window: int, context: int) -> int:
        """Tokens of a long window, a multiple of the short window; 0 if it would not be longer. context: maximum length
        of the model."""
        long = min(self.batch_tokens, context) // window * window if self.long_share else 0
        return long if long > window else 0

    def steps_for(self, tokens: int) -> int:
        """Steps per layer: 150 at 32k tokens, 425 at 131k, 970 at 393k, because more text supports more steps."""
        return self.steps or max(20, round(150 * (tokens / 32_768) ** 0.75))

    @property
    def key(self) -> dict[str, object]:
        """Settings that refined weights depend on, in addition to model, layout, merge and text. Stored refinements are
        named by them."""
        lr = None if self.rate == SCOPES.get(self.scope) else self.rate
        return {
            "scope": self.scope, "steps": self.steps, "lr": lr, "batch_tokens": self.batch_tokens, "seed": self.seed,
            "tokens": self.tokens,
        }  # fmt: skip


AskedRefinement = RefineOptions | RefinePlan
