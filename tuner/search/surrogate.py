"""How wrong the estimates are, learned from the trials so far, choice by choice.

A Bayesian linear regression of log(measured / estimated) on a plan's choices: a bias common to all
plans, and a small effect of each choice. Nothing but the standard library: a few dozen
choices and trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Sample = tuple[frozenset[str], float]
"""A plan's choices and the logarithm of measured over estimated."""

BIAS = "bias"
PRIOR_BIAS_SD = 0.7
PRIOR_EFFECT_SD = 0.15
PRIOR_WEIGHT = 4.0
AXES_APART = 3.0
OWN_SHARE = 0.35
PAIRED_AXES = ("scheme", "scope", "placement", "attention")
PAIR_SHARE = 0.5
"""Priors. Before any trial a choice's estimate is taken to be right within 15%; the trials'
residuals replace that belief as if it came from four trials, two plans being three choices apart.
A plan's own share of error and that of a pair of choices are parts of one choice's."""

Matrix = list[list[float]]


@dataclass(frozen=True)
class Prediction:
    """Of log(measured / estimated): `mean` and standard deviation."""

    mean: float
    sd: float


class ErrorModel:
    """Posterior over estimate errors. Immutable; the order of samples does not matter."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._effect_variance = _effect_variance([residual for _, residual in samples])
        expanded = sorted(
            (sorted(with_pairs(choices) | {BIAS}), residual) for choices, residual in samples
        )
        names = sorted({name for choices, _ in expanded for name in choices})
        self._index = {name: position for position, name in enumerate(names)}
        self._covariance, self._effects = self._posterior(expanded)

    def predict(self, choices: frozenset[str]) -> Prediction:
        """For any plan, tried or not."""
        expanded = with_pairs(choices) | {BIAS}
        known = [self._index[name] for name in expanded if name in self._index]
        unknown = sum(self._prior(name) for name in expanded if name not in self._index)
        mean = sum(self._effects[i] for i in known)
        variance = sum(self._covariance[i][j] for i in known for j in known)
        return Prediction(mean, math.sqrt(max(0.0, variance + unknown + self._own_variance)))

    @property
    def _own_variance(self) -> float:
        return self._effect_variance * OWN_SHARE**2

    def _prior(self, name: str) -> float:
        if name == BIAS:
            return PRIOR_BIAS_SD**2
        return self._effect_variance * (PAIR_SHARE**2 if "*" in name else 1.0)

    def _posterior(self, samples: Sequence[tuple[list[str], float]]) -> tuple[Matrix, list[float]]:
        precision = self._prior_precision()
        weighted = [0.0] * len(self._index)
        for choices, residual in samples:
            positions = [self._index[name] for name in choices]
            for i in positions:
                weighted[i] += residual / self._own_variance
                for j in positions:
                    precision[i][j] += 1.0 / self._own_variance
        covariance = _inverse(precision)
        return covariance, [_dot(row, weighted) for row in covariance]

    def _prior_precision(self) -> Matrix:
        size = len(self._index)
        precision = [[0.0] * size for _ in range(size)]
        for name, position in self._index.items():
            precision[position][position] = 1.0 / self._prior(name)
        return precision


def with_pairs(choices: frozenset[str]) -> frozenset[str]:
    """The choices, and each pair of those that act on each other: "scheme*scope=...*..."."""
    by_axis = dict(choice.split("=", 1) for choice in choices)
    return choices | frozenset(_pairs(by_axis))


def expected_gain(prediction: Prediction, log_gap: float) -> float:
    """Expected improvement in log units, where `log_gap` is log(incumbent / estimate)."""
    if prediction.sd <= 0.0:
        return max(0.0, log_gap - prediction.mean)
    z = (log_gap - prediction.mean) / prediction.sd
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    below = 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
    return prediction.sd * (z * below + density)


def _effect_variance(residuals: Sequence[float]) -> float:
    if not residuals:
        return PRIOR_EFFECT_SD**2
    centre = sum(residuals) / len(residuals)
    spread = sum((value - centre) ** 2 for value in residuals) / AXES_APART
    return (PRIOR_WEIGHT * PRIOR_EFFECT_SD**2 + spread) / (PRIOR_WEIGHT + len(residuals) - 1)


def _pairs(by_axis: Mapping[str, str]) -> list[str]:
    present = [axis for axis in PAIRED_AXES if axis in by_axis]
    return [f"{a}*{b}={by_axis[a]}*{by_axis[b]}" for a, b in combinations(present, 2)]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _inverse(matrix: Matrix) -> Matrix:
    """Of a symmetric positive definite matrix, by Gauss-Jordan without pivoting."""
    size = len(matrix)
    left = [row[:] for row in matrix]
    right = [[1.0 if i == j else 0.0 for j in range(size)] for i in range(size)]
    for pivot in range(size):
        scale = 1.0 / left[pivot][pivot]
        left[pivot] = [value * scale for value in left[pivot]]
        right[pivot] = [value * scale for value in right[pivot]]
        for row in range(size):
            _eliminate(left, right, row, pivot)
    return right


def _eliminate(left: Matrix, right: Matrix, row: int, pivot: int) -> None:
    factor = left[row][pivot]
    if row == pivot or factor == 0.0:
        return
    left[row] = [a - factor * b for a, b in zip(left[row], left[pivot], strict=True)]
    right[row] = [a - factor * b for a, b in zip(right[row], right[pivot], strict=True)]
