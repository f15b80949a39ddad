"""What the parent saw from outside, put into the worker's own measurement."""

from __future__ import annotations

from registry.record import Measurement, PeakMemory
from tuner.detect import Detection
from tuner.foreign import unexplained_growth
from tuner.protocol import ProfileResult, Result, TrialResult
from tuner.sampler import Sampler


def complete(
    result: Result | None, sampler: Sampler, detection: Detection, contaminated: str | None
) -> Result | None:
    """A trial's result with peaks, clocks and foreign load filled in; others unchanged."""
    if isinstance(result, ProfileResult):
        trial = _complete(result.trial, sampler, detection, contaminated)
        return result.model_copy(update={"trial": trial})
    if isinstance(result, TrialResult):
        return _complete(result, sampler, detection, contaminated)
    return result


def _complete(
    result: TrialResult, sampler: Sampler, detection: Detection, contaminated: str | None
) -> TrialResult:
    on_gpu = detection.device_uuid is not None
    own = result.measurement
    memory = (_on_gpu if on_gpu else _on_cpu)(own.memory, sampler)
    reasons = (
        own.contaminated,
        contaminated,
        _unexplained(own.memory, sampler) if on_gpu else None,
    )
    measurement = own.model_copy(
        update={
            "memory": memory,
            "sm_clock_mhz": sampler.sm_clock_mhz or own.sm_clock_mhz,
            "power_w": sampler.power_w or own.power_w,
            "contaminated": "; ".join(reason for reason in reasons if reason) or None,
        }
    )
    return result.model_copy(update={"measurement": Measurement.model_validate(measurement)})


def _on_gpu(own: PeakMemory, sampler: Sampler) -> PeakMemory:
    """The allocator knows peaks shorter than a sample; the driver knows what is outside it."""
    return own.model_copy(
        update={
            "peak_vram_bytes": max(sampler.device_growth_peak_bytes, _accounted_bytes(own)),
            "load_peak_vram_bytes": max(sampler.load_growth_peak_bytes, own.load_peak_vram_bytes),
            "device_growth_peak_bytes": sampler.device_growth_peak_bytes,
            "host_peak_bytes": sampler.host_peak_bytes,
        }
    )


def _on_cpu(own: PeakMemory, sampler: Sampler) -> PeakMemory:
    return own.model_copy(
        update={
            "peak_vram_bytes": sampler.device_growth_peak_bytes,
            "load_peak_vram_bytes": sampler.load_growth_peak_bytes,
            "device_growth_peak_bytes": sampler.device_growth_peak_bytes,
            "host_peak_bytes": sampler.host_peak_bytes,
        }
    )


def _unexplained(own: PeakMemory, sampler: Sampler) -> str | None:
    return unexplained_growth(sampler.device_growth_peak_bytes, _accounted_bytes(own))


def _accounted_bytes(own: PeakMemory) -> int:
    return own.reserved_peak_bytes + own.outside_allocator_bytes
