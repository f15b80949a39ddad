"""A plan as a plain diffusers script, which does by hand what `tuner.apply` does.

The same calls in the same order as `tuner/pipeline/apply.py`, so that pictures, layer types and
graphs are equal. Text in, text out: nothing of torch is imported here.
"""

from __future__ import annotations

from registry.environment import DeviceKind
from registry.inventory import ModelInventory
from registry.plan import Plan
from registry.workload import Shape
from tuner import catalog
from tuner.export.options import (
    attention,
    channels_last,
    compilation,
    settings,
    step_cache,
    vae,
)
from tuner.export.placement import placement
from tuner.export.request import load, request, save, takes_folder
from tuner.export.source import assemble, prose
from tuner.export.weights import fused, quantized
from tuner.model_spec import ModelSpec

DEFAULT_PROMPT = "a lighthouse on a cliff at dusk, waves below, oil painting"


def diffusers_script(
    plan: Plan,
    *,
    model: ModelSpec,
    pipeline_class: str,
    inventory: ModelInventory | None,
    shape: Shape,
    prompt: str | None = None,
    device: DeviceKind = "cuda",
    steps: int | None = None,
) -> str:
    """A runnable script that makes one request of `shape` under `plan`, with no import of ours.

    It loads the model from the hub, or from the folder given as its first argument where the model
    is local or has random weights. `steps` None is the catalog's number, else the pipeline's own;
    `prompt` None the catalog's first, else DEFAULT_PROMPT.
    Without an inventory, `transformer` and `unet` are what denoisers are called.

    Raises InvalidPlan for a plan that no script can follow (a part of a pipeline offloaded by a
    method for all of it; a denoiser's option where none is known), and InvalidInput for a pipeline
    class that is no name.
    """
    entry = catalog.entry(model.catalog) if model.catalog else None
    steps = steps or (entry.default_steps if entry else None)
    prompt = prompt or next(iter(entry.default_prompts if entry else ()), DEFAULT_PROMPT)
    parts = [
        settings(plan.process),
        load(plan, model, pipeline_class),
        fused(plan, inventory),
        quantized(plan),
        attention(plan, inventory),
        channels_last(plan),
        placement(plan, inventory),
        compilation(plan, inventory, fuses_norm_rope=device == "cuda" and "Flux" in pipeline_class),
        step_cache(plan, inventory),
        vae(plan),
        request(plan, shape, prompt, steps),
        save(shape, argument=2 if takes_folder(model) else 1),
    ]
    return assemble(_docstring(plan, model, shape), parts)


def _docstring(plan: Plan, model: ModelSpec, shape: Shape) -> str:
    folder = "MODEL_FOLDER " if takes_folder(model) else ""
    target = "VIDEO" if shape.frames > 1 else "IMAGE"
    lines = [
        f"{prose(model.ref.name)}, {shape.label}, as tuning plan {plan.digest[:12]} says.",
        "",
        f"    python SCRIPT {folder}[{target}]",
        "",
    ]
    if folder:
        lines += [_about_folder(model)]
    schemes = {item.quantization.scheme for item in plan.pipeline.components.values()}
    torchao = ", torchao" if schemes - {"none"} else ""
    cudnn = ", nvidia-cudnn-frontend" if plan.pipeline.attention_backend == "cudnn_fp8" else ""
    lines += [f"Needs torch, diffusers, transformers, accelerate{torchao}{cudnn}.", ""]
    return "\n".join(lines)


def _about_folder(model: ModelSpec) -> str:
    if model.ref.weights == "random":
        return "Tuned on random weights: MODEL_FOLDER is a diffusers folder that holds real ones."
    if model.catalog is not None and catalog.entry(model.catalog).ships_weights:
        return "MODEL_FOLDER is what `tuner models --json` calls weights_folder, or a copy of it."
    return "MODEL_FOLDER is the model's diffusers folder."
