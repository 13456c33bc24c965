"""How layers are refined."""

from dataclasses import dataclass, replace

from grouper.errors import GrouperError

SCOPES = {"attention": 0.04, "block": 0.02}  # Adam's step by default: bench/refine_rates.py prints what is best
TOKENS = {"cpu": 16_384, "cuda": 393_216}
LONG = 0.5  # of the tokens, in long windows


@dataclass(frozen=True)
class RefineOptions:
    """What is None is filled in by device: on a GPU more tokens, the whole block and larger steps.

    scope: "attention" or "block". steps: of Adam per layer; from the number of tokens unless given. lr: Adam's step as
    a share of each tensor's root mean square, falling linearly to 0, so that it does not matter at which scale a tensor
    is kept; by scope unless given, for what is best hardly depends on the number of tokens. batch_tokens: tokens of a
    step. tokens: of calibration text, at most; `long_share` of them in windows as long as a step or the model's
    context, for what lies far back is read otherwise than what is near.
    """

    scope: str | None = None
    steps: int | None = None
    lr: float | None = None
    batch_tokens: int | None = None
    seed: int = 0
    tokens: int | None = None
    long_share: float | None = None

    def __post_init__(self) -> None:
        if self.long_share is not None and not 0 <= self.long_share < 1:
            raise GrouperError(f"--long-share {self.long_share}: expected a share from 0 to below 1")

    def long_window(self, window: int, context: int) -> int:
        """Tokens of a long window, a multiple of the short ones'; 0 where it would be no longer. context: of the model.
        For options that `for_device` filled in."""
        long = min(self.batch_tokens, context) // window * window if self.long_share else 0
        return long if long > window else 0

    def for_device(self, device: str) -> "RefineOptions":
        gpu = "cuda" in str(device)
        return replace(
            self,
            scope=self.scope or ("block" if gpu else "attention"),
            batch_tokens=self.batch_tokens or (4096 if gpu else 1024),
            tokens=self.tokens or TOKENS["cuda" if gpu else "cpu"],
            long_share=LONG if self.long_share is None else self.long_share,
        )

    @property
    def rate(self) -> float:
        return self.lr or SCOPES[self.scope]

    def steps_for(self, tokens: int) -> int:
        """150 steps at 32k tokens, 425 at 131k, 970 at 393k: more text bears more steps."""
        return self.steps or max(20, round(150 * (tokens / 32_768) ** 0.75))
