"""Training by the clock: stages that end on time, and a curve of what was reached when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Clock = Callable[[], float]


@dataclass(frozen=True)
class Stage:
    """From `start_s` to `end_s` of a clock."""

    start_s: float
    end_s: float
    clock: Clock = time.monotonic

    def steps(self) -> Iterator[tuple[int, float]]:
        """(step, share of the stage that is over) until it is over; one step at least."""
        length_s = max(self.end_s - self.start_s, 1e-9)
        step, share = 0, 0.0
        while step == 0 or share < 1:
            yield step, min(max(share, 0.0), 1.0)
            step += 1
            share = (self.clock() - self.start_s) / length_s


@dataclass(frozen=True)
class TimeBox:
    """The whole time there is, given out in shares."""

    start_s: float
    length_s: float
    clock: Clock = time.monotonic

    def until(self, share: float) -> Stage:
        """From now to when `share` of the whole is over."""
        return Stage(self.clock(), self.start_s + share * self.length_s, self.clock)

    @property
    def elapsed_s(self) -> float:
        """Since the start of the whole."""
        return self.clock() - self.start_s


@dataclass
class Journal:
    """Figures by stage, printed and written to `curve.json` as they come."""

    folder: Path
    box: TimeBox
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def note(self, stage: str, step: int, **figures: float) -> None:
        """One point of the stage's curve."""
        point = {"elapsed_s": round(self.box.elapsed_s, 2), "step": step}
        point |= {name: float(f"{figure:.5g}") for name, figure in figures.items()}
        self.curves.setdefault(stage, []).append(point)
        told = ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
        self.say(f"{stage} step {step}: {told}")

    def say(self, text: str) -> None:
        """One line, with the time."""
        print(f"[{self.box.elapsed_s:6.1f} s] {text}", flush=True)

    def save(self) -> None:
        """Writes what was noted so far."""
        path = self.folder / "curve.json"
        path.write_text(json.dumps(self.curves, indent=1) + "\n", encoding="utf-8")


def learning_rate(peak: float, step: int, share: float, *, warm_up: int = 100) -> float:
    """Rises over `warm_up` steps, holds, and falls to zero over the stage's last 40%."""
    return peak * min(1.0, (step + 1) / warm_up) * min(1.0, (1.02 - share) / 0.4)
