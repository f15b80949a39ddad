"""From timed layers of FLUX to a mixed quantization."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import pytest

from registry.plan import LayerScheme, Quantization
from registry.record import Policy, Quality, Trial
from registry.timing import Timing, TimingKey
from tests.tuner.flux import ONE_PICTURE, REGIONAL, SQUARE, flux, h200, plan, quantization, shipped
from tuner import policies
from tuner.block_kinds import Bench
from tuner.block_sums import BlockSums
from tuner.block_targets import Choices, block_targets, kinds_at, layer_targets
from tuner.candidate import Candidate
from tuner.cost_model import CostModel
from tuner.layers import component_bytes, quantized_layers, scheme_of
from tuner.mixing import Mixture, layer_groups, mix, noise_factor

ROW = quantization("float8_dynamic_row", light=True)
INT8 = quantization("int8_dynamic", light=True)
BENCH = Bench(h200(), "bfloat16")
KINDS = kinds_at(flux(), SQUARE)
TEXT_ROWS = 512
GB = 10**9
Layer = Callable[[TimingKey], tuple[float, float]]
"""Share of the plain layer's time, and SQNR in dB."""


def text_is_slower(key: TimingKey) -> tuple[float, float]:
    """float8 wins but where there are few rows; int8 wins less, and is closer to the original."""
    if key.scheme == "float8_dynamic_row":
        return (1.3 if key.shape[0] <= TEXT_ROWS else 0.55), 28.0
    return 0.8, 36.0


def sums_of(layer: Layer = text_is_slower, *, model: str = "flux-dev") -> BlockSums:
    """Every layer timed as `layer` says; blocks are the sum of theirs, and as much again."""
    inventory = shipped(model)
    kinds = kinds_at(inventory, inventory.profiles[0].shape)
    choices = Choices((quantization("none"), ROW, INT8), ("default",))
    layers = layer_targets(kinds, BENCH, SQUARE, (ROW, INT8))
    timings = {target.key: timed(target.key, layer) for target in layers}
    single = BlockSums(kinds, BENCH, SQUARE, timings)
    for kind in kinds:
        for target in block_targets((kind,), BENCH, SQUARE, choices):
            schemes = dict(target.layers)
            ms = 1.0
            for item, rows in zip(kind.layers, kind.rows, strict=True):
                ms += single.layer_ms(item, rows, schemes.get(kind.inside(item), "none")) or 0.0
            timings[target.key] = measured(target.key, ms)
    return BlockSums(kinds, BENCH, SQUARE, timings, rest_ms=2.0)


def timed(key: TimingKey, layer: Layer) -> Timing:
    rows, inside, outside = key.shape
    plain_ms = 3e-12 * rows * inside * outside + 0.01
    if key.scheme == "none":
        return measured(key, plain_ms)
    share, sqnr_db = layer(key)
    return measured(key, plain_ms * share).model_copy(update={"sqnr_db": sqnr_db})


def measured(key: TimingKey, ms: float) -> Timing:
    return Timing(key=key, outcome="measured", median_ms=ms, mad_ms=0.0, samples=7)


def candidates() -> list[Candidate]:
    model = CostModel(flux(), h200().hardware)
    plans = [plan(scheme, light=True, compilation=REGIONAL) for scheme in (ROW.scheme, INT8.scheme)]
    return [Candidate(item, model.estimate(item, ONE_PICTURE)) for item in plans]


def mixed(
    sums: BlockSums,
    *,
    policy: Policy = "balanced",
    calibrated: bool = False,
    budget_bytes: int = 140 * GB,
    trials: tuple[Trial, ...] = (),
) -> Mixture | None:
    return mix(
        sums,
        (ROW, INT8),
        candidates(),
        denoiser="transformer",
        policy=policy,
        calibrated=calibrated,
        budget_bytes=budget_bytes,
        trials=trials,
    )


def test_every_layer_that_the_base_quantizes_is_in_one_group() -> None:
    groups = layer_groups(sums_of(), (ROW, INT8))
    patterns = [pattern for group in groups for pattern in group.patterns]
    assert len(patterns) == len(set(patterns))
    assert "transformer_blocks.*.attn.to_q" in patterns
    assert "transformer_blocks.*.ff.net.0.proj" in patterns
    for layer in flux().denoiser.linears:
        owners = [item for item in patterns if fnmatchcase(layer.name, item)]
        assert len(owners) == (scheme_of(layer, ROW) != "none"), layer.name


def test_blocks_of_one_class_share_a_choice_whatever_part_they_are_in() -> None:
    """SDXL's lie in down, middle and up blocks."""
    groups = layer_groups(sums_of(model="sdxl"), (ROW, INT8))
    query = next(g for g in groups if any(p.endswith("attn1.to_q") for p in g.patterns))
    assert {pattern.split(".")[0] for pattern in query.patterns} == {
        "down_blocks",
        "mid_block",
        "up_blocks",
    }


def test_each_group_takes_what_is_fastest_for_it() -> None:
    sums = sums_of()
    found = mixed(sums)
    assert found is not None
    schemes = {
        pattern: choice.scheme
        for group, choice in zip(found.groups, found.chosen, strict=True)
        for pattern in group.patterns
    }
    assert schemes["transformer_blocks.*.attn.to_q"] == "float8_dynamic_row"
    assert schemes["single_transformer_blocks.*.proj_mlp"] == "float8_dynamic_row"
    assert schemes["transformer_blocks.*.attn.add_q_proj"] == "int8_dynamic"
    own_ms = sums.blocks_ms(found.quantization)
    assert own_ms is not None
    assert own_ms < min(sums.blocks_ms(item) or 0.0 for item in (ROW, INT8))


def test_the_plan_does_what_was_chosen() -> None:
    """Pattern by pattern: what every layer of the model then is."""
    found = mixed(sums_of())
    assert found is not None
    chosen: dict[str, LayerScheme] = {
        pattern: choice.scheme
        for group, choice in zip(found.groups, found.chosen, strict=True)
        for pattern in group.patterns
    }
    for layer in flux().denoiser.linears:
        owner = next((item for item in chosen if fnmatchcase(layer.name, item)), None)
        wanted = chosen[owner] if owner else "none"
        assert scheme_of(layer, found.quantization) == wanted, layer.name


def test_layers_that_gain_nothing_stay_and_the_report_says_why() -> None:
    def useless_for_text(key: TimingKey) -> tuple[float, float]:
        share, sqnr_db = text_is_slower(key)
        return (1.2 if key.shape[0] <= TEXT_ROWS else share), sqnr_db

    found = mixed(sums_of(useless_for_text))
    assert found is not None
    assert not any("add_" in pattern for pattern in found.quantization.layers)
    row = next(
        r for r in found.as_data() if r["layers"] == ["transformer_blocks.*.attn.add_q_proj"]
    )
    assert row["scheme"] == "none"
    assert row["ms"]["none"] < min(row["ms"]["int8_dynamic"], row["ms"]["float8_dynamic_row"])


def test_no_mixture_where_one_scheme_is_best_everywhere() -> None:
    assert mixed(sums_of(lambda key: (0.6 if "float8" in key.scheme else 0.9, 40.0))) is None


def test_no_mixture_without_timed_layers() -> None:
    sums = sums_of()
    blocks = {key: item for key, item in sums.timings.items() if key.kind == "block"}
    assert mixed(BlockSums(KINDS, BENCH, SQUARE, blocks)) is None


def noise_of(found: Mixture) -> float:
    return sum(choice.noise for choice in found.chosen)


def test_a_stricter_policy_leaves_more_layers_closer_to_the_original() -> None:
    balanced, strict = mixed(sums_of()), mixed(sums_of(), policy="strict")
    assert balanced is not None
    assert strict is not None
    assert noise_of(strict) * 4.0 <= 10 ** (-30.0 / 10) < noise_of(balanced) * 4.0
    assert "int8_dynamic" in strict.quantization.layers.values()


def test_trained_weights_get_the_noise_that_their_own_threshold_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(policies.CALIBRATED, "balanced", {"sqnr_db": 30.0})
    trained, untrained = mixed(sums_of(), calibrated=True), mixed(sums_of())
    assert trained is not None
    assert untrained is not None
    assert noise_of(trained) * 4.0 <= 10 ** (-30.0 / 10) < noise_of(untrained) * 4.0


def trial(chosen: Quantization, sqnr_db: float) -> Trial:
    quality = Quality(
        policy="balanced", passed=True, calibrated=False, worst={"sqnr_db": sqnr_db}, scores=()
    )
    used = plan("none", compilation=REGIONAL)
    component = used.pipeline.component("transformer").model_copy(update={"quantization": chosen})
    pipeline = used.pipeline.model_copy(update={"components": {"transformer": component}})
    return Trial(
        rung="denoiser",
        plan=used.model_copy(update={"pipeline": pipeline}),
        quality=quality,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_the_noise_of_trials_calibrates_the_budget() -> None:
    """28 dB a layer; a step of 18 dB has ten times the noise, one of 25 dB twice."""
    groups = layer_groups(sums_of(), (ROW, INT8))
    assert noise_factor(groups, (ROW, INT8), (), "transformer") == 4.0
    factors = [
        noise_factor(groups, (ROW, INT8), (trial(ROW, value),), "transformer")
        for value in (18.0, 25.0)
    ]
    assert factors == pytest.approx([10.0, 10**0.3])
    unquantized = trial(quantization("none"), 120.0)
    assert noise_factor(groups, (ROW, INT8), (unquantized,), "transformer") == 4.0


def test_a_small_budget_quantizes_layers_that_lose_time() -> None:
    """Text layers in bfloat16 would be faster here; there is no room for them."""

    def useless_for_text(key: TimingKey) -> tuple[float, float]:
        share, sqnr_db = text_is_slower(key)
        return (6.0 if key.shape[0] <= TEXT_ROWS else share), sqnr_db

    roomy = mixed(sums_of(useless_for_text))
    assert roomy is not None
    transformer = flux().denoiser
    size = component_bytes(
        transformer,
        quantized_layers(transformer, roomy.quantization),
        roomy.quantization,
        "bfloat16",
    )
    lean = component_bytes(transformer, quantized_layers(transformer, ROW), ROW, "bfloat16")
    peak = min(item.estimate.peak_vram_bytes for item in candidates())
    tight = mixed(sums_of(useless_for_text), budget_bytes=peak + (size - lean) // 2)
    assert tight is not None
    assert len(tight.quantization.layers) > len(roomy.quantization.layers)
