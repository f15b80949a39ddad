from __future__ import annotations

import math
import random

import pytest

from tuner.search.surrogate import ErrorModel, Prediction, Sample, expected_gain, with_pairs

EFFECTS = {"scheme=a": 0.0, "scheme=b": 0.2, "scope=x": 0.0, "scope=y": -0.15}


def sample(scheme: str, scope: str) -> Sample:
    """An error common to all of 0.3, and one of each choice."""
    choices = frozenset({f"scheme={scheme}", f"scope={scope}"})
    return choices, 0.3 + sum(EFFECTS[choice] for choice in choices)


def test_nothing_learned_predicts_no_error_and_is_unsure() -> None:
    prediction = ErrorModel([]).predict(frozenset({"scheme=a"}))

    assert prediction.mean == 0.0
    assert prediction.sd > 0.5


def test_an_error_common_to_all_is_learned_from_one_trial() -> None:
    model = ErrorModel([sample("a", "x")])
    other = model.predict(frozenset({"scheme=z", "scope=w"}))

    assert other.mean == pytest.approx(0.3, abs=0.06)
    assert other.sd < 0.4


def test_effects_of_choices_add_up_for_a_plan_never_tried() -> None:
    trials = [sample("a", "x"), sample("b", "x"), sample("a", "y")]
    untried, truth = sample("b", "y")
    prediction = ErrorModel(trials).predict(untried)

    assert prediction.mean == pytest.approx(truth, abs=0.08)
    assert abs(prediction.mean - truth) < 2 * prediction.sd


def test_what_was_tried_is_known_better_than_what_was_not() -> None:
    tried, _ = sample("a", "x")
    model = ErrorModel([sample("a", "x"), sample("a", "x")])

    assert model.predict(tried).sd < model.predict(frozenset({"scheme=q", "scope=x"})).sd


def test_right_estimates_make_it_sure_and_wrong_ones_unsure() -> None:
    names = ("a", "b", "c", "d", "e")
    right = [(frozenset({f"scheme={name}"}), 0.0) for name in names]
    wrong = [(frozenset({f"scheme={name}"}), 0.6 * (-1) ** i) for i, name in enumerate(names)]
    new = frozenset({"scheme=new"})

    assert ErrorModel(right).predict(new).sd < 0.8 * ErrorModel(wrong).predict(new).sd


def test_the_order_of_trials_changes_nothing() -> None:
    trials = [sample(scheme, scope) for scheme in "ab" for scope in "xy"]
    shuffled = random.Random(1).sample(trials, len(trials))
    asked = frozenset({"scheme=b", "scope=w"})

    assert ErrorModel(trials).predict(asked) == ErrorModel(shuffled).predict(asked)


def test_pairs_are_of_choices_that_act_on_each_other() -> None:
    choices = frozenset({"scheme=a", "scope=x", "fuse_qkv=True"})
    assert with_pairs(choices) - choices == {"scheme*scope=a*x"}


def test_expected_gain_is_the_mean_of_what_exceeds_the_gap() -> None:
    draws = [random.Random(i).gauss(0.1, 0.2) for i in range(40_000)]
    simulated = sum(max(0.0, 0.05 - draw) for draw in draws) / len(draws)

    assert expected_gain(Prediction(0.1, 0.2), 0.05) == pytest.approx(simulated, rel=0.03)


def test_expected_gain_without_doubt_is_the_gain() -> None:
    assert expected_gain(Prediction(0.1, 0.0), 0.3) == pytest.approx(0.2)
    assert expected_gain(Prediction(0.1, 0.0), 0.0) == 0.0


def test_expected_gain_of_the_hopeless_is_nearly_nothing() -> None:
    gain = expected_gain(Prediction(0.0, 0.05), -1.0)
    assert 0.0 <= gain < 1e-12
    assert math.isfinite(gain)
