"""How long one linear layer or one repeated block takes on one machine: the autoquant cache.

A timing is found by its key alone, so every model with a layer of that shape shares it. A failure
is kept as a failure and tried again later; it is never an infinite time.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from registry.base import Frozen
from registry.digest import digest
from registry.plan import AttentionBackend, Dtype, Scheme

TimingContext = Literal["compiled", "eager"]
TimingOutcome = Literal["measured", "noisy", "failed", "unsupported"]


class TimingKey(Frozen):
    """What was timed and where.

    `hardware` and `runtime` are the digests of the `Environment`'s parts. `name` is "linear" for a
    linear layer; for a block its class name, ":" and the digest of its layers' shapes. `shape` is
    (rows M, in features K, out features N) of a linear layer and (batch, image tokens, text tokens)
    of a block. `dtype` is the activations'. `attention_backend` matters to blocks only.
    """

    hardware: str
    runtime: str
    kind: Literal["linear", "block"]
    name: str
    shape: tuple[int, ...]
    dtype: Dtype
    bias: bool
    scheme: Scheme
    attention_backend: AttentionBackend = "default"
    context: TimingContext = "compiled"

    @property
    def digest(self) -> str:
        return digest(self)


class Timing(Frozen):
    """One key's time, or why there is none.

    `median_ms` and `mad_ms` (median absolute deviation) of `samples` timed calls are there for
    "measured" and "noisy" and for nothing else. "noisy" and "failed" are timed again by the next
    study that needs them. `sqnr_db` compares a quantized linear layer's output with the unquantized
    one's, on activations of the model. `message` says why a timing failed.
    """

    key: TimingKey
    outcome: TimingOutcome
    median_ms: float | None = Field(default=None, gt=0)
    mad_ms: float | None = Field(default=None, ge=0)
    samples: int = Field(ge=0)
    sqnr_db: float | None = None
    message: str = ""

    @model_validator(mode="after")
    def _times_only_where_timed(self) -> Self:
        timed = self.outcome in ("measured", "noisy")
        for name in ("median_ms", "mad_ms"):
            if (getattr(self, name) is not None) != timed:
                presence = "needs" if timed else "has no"
                raise ValueError(f"a timing that is {self.outcome!r} {presence} {name}")
        return self
