"""How long a request takes: every component's calls, put together and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from registry.inventory import ComponentActivity, ShapeProfile
from registry.plan import AttentionBackend, ComponentPlan, Dtype, PipelineOptions, Quantization
from tuner.activities import activity_of
from tuner.call_model import Call, CallModel
from tuner.footprint import Footprint
from tuner.rooflines import Peaks


@dataclass(frozen=True)
class RequestTimes:
    """Weighted means over a workload's shapes. `encode_s` holds what is paid before the steps: text
    encoders and the denoiser's move to the device."""

    encode_s: float = 0.0
    step_s: float = 0.0
    decode_s: float = 0.0

    @property
    def fixed_s(self) -> float:
        return self.encode_s + self.decode_s


class SpeedModel:
    """Predicts requests on one device."""

    def __init__(self, peaks: Peaks) -> None:
        self._peaks = peaks
        # By identity, each with the object it is about: its identity cannot be given to another.
        self._calls: dict[
            tuple[int, AttentionBackend, Dtype, int],
            tuple[ComponentPlan, ComponentActivity, Call],
        ] = {}
        self._linears: dict[
            tuple[Quantization, bool, Dtype, int], tuple[ComponentActivity, float]
        ] = {}

    def request(
        self,
        options: PipelineOptions,
        footprints: Sequence[Footprint],
        profiles: Sequence[ShapeProfile],
    ) -> RequestTimes:
        """Times of one plan, averaged over shapes by their weights."""
        whole = sum(profile.shape.weight for profile in profiles)
        total = dict.fromkeys(("encode", "step", "decode"), 0.0)
        for profile in profiles:
            share = profile.shape.weight / whole
            for item in footprints:
                activity = activity_of(profile, item.component, options.vae)
                if activity is not None:
                    call = self._call(options, item, activity)
                    _add(total, item, activity.calls * call.compute_s * share, call.moves_s * share)
        return RequestTimes(total["encode"], total["step"], total["decode"])

    def once(self, options: PipelineOptions, item: Footprint, activity: ComponentActivity) -> float:
        """Seconds of one call with this activity, not remembered."""
        model = CallModel(self._peaks, options.dtype)
        linear_s = model.linear_s(item, activity)
        return model.call(item, activity, linear_s, options.attention_backend).compute_s

    def _call(self, options: PipelineOptions, item: Footprint, activity: ComponentActivity) -> Call:
        is_denoiser = item.component.role == "denoiser"
        backend = options.attention_backend if is_denoiser else "default"
        key = (id(item.choice), backend, options.dtype, id(activity))
        if key not in self._calls:
            model = CallModel(self._peaks, options.dtype)
            linear_s = self._linear_s(model, item, activity)
            call = model.call(item, activity, linear_s, backend)
            self._calls[key] = (item.choice, activity, call)
        return self._calls[key][2]

    def _linear_s(self, model: CallModel, item: Footprint, activity: ComponentActivity) -> float:
        """Few choices change the linear layers, and there are hundreds of them."""
        compiled = item.choice.compilation.scope != "none"
        key = (item.choice.quantization, compiled, model.dtype, id(activity))
        if key not in self._linears:
            self._linears[key] = (activity, model.linear_s(item, activity))
        return self._linears[key][1]


def _add(total: dict[str, float], item: Footprint, busy_s: float, moves_s: float) -> None:
    part = {"denoiser": "step", "vae": "decode"}.get(item.component.role, "encode")
    total[part] += busy_s
    total["decode" if part == "decode" else "encode"] += moves_s
