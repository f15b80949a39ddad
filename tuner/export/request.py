"""The two ends of a script: the model loaded, and one request made of it."""

from __future__ import annotations

from registry.plan import Plan
from registry.workload import Shape
from tuner.export.source import Part, call, identifier, literal
from tuner.model_spec import ModelSpec

DEVICE = 'DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")'
SEED = 0


def takes_folder(model: ModelSpec) -> bool:
    """Whether the script's first argument is the model's folder: a path on one machine is no part
    of a script, and random weights are nowhere."""
    return model.path is not None or model.hub_id is None or model.ref.weights == "random"


def load(plan: Plan, model: ModelSpec, pipeline_class: str) -> Part:
    """The pipeline on the CPU, in the plan's dtype. Pickles are never read."""
    lines: list[str] = []
    keywords: dict[str, str] = {}
    source = literal(str(model.hub_id))
    if takes_folder(model):
        source, lines = "sys.argv[1]", ["if len(sys.argv) < 2:", "    sys.exit(__doc__)"]
    elif model.ref.revision is not None:
        keywords["revision"] = literal(model.ref.revision)
    keywords |= {"dtype": f"torch.{plan.pipeline.dtype}", "use_safetensors": "True"}
    factory = f"{identifier(pipeline_class)}.from_pretrained"
    lines += [call(f"pipe = {factory}", source, **keywords)]
    imports = (("sys", ""), ("torch", ""), ("diffusers", pipeline_class))
    return Part(tuple(lines), imports=imports, definitions=(DEVICE,))


def request(plan: Plan, shape: Shape, prompt: str, steps: int | None) -> Part:
    """One call of the pipeline with a seeded generator on the CPU, whose numbers are the same
    everywhere."""
    words = literal(prompt)
    optional = {
        "num_frames": shape.frames if shape.frames > 1 else None,
        "output_type": "pil" if shape.frames > 1 else None,
        "num_inference_steps": steps,
        "max_sequence_length": plan.pipeline.text_tokens or shape.text_tokens,
        "guidance_scale": None if shape.guidance else 1.0,
    }
    arguments = {
        "prompt": words if shape.batch_size == 1 else f"[{words}] * {literal(shape.batch_size)}",
        "height": literal(shape.height),
        "width": literal(shape.width),
        **{name: literal(value) for name, value in optional.items() if value is not None},
        "generator": f'torch.Generator("cpu").manual_seed({SEED})',
    }
    return Part((call("output = pipe", **arguments),))


def save(shape: Shape, argument: int) -> Part:
    """Pictures to the path given as the script's argument of this number, and the peak printed."""
    is_video = shape.frames > 1
    default = literal("video.gif" if is_video else "image.png")
    target = f"sys.argv[{argument}] if len(sys.argv) > {argument} else {default}"
    imports = [("sys", ""), ("torch", "")]
    if is_video:
        lines = [f"export_to_gif(output.frames[0], {target})"]
        imports += [("diffusers.utils", "export_to_gif")]
    elif shape.batch_size == 1:
        lines = [f"output.images[0].save({target})"]
    else:
        lines = [
            f"target = Path({target})",
            "for number, image in enumerate(output.images, start=1):",
            '    image.save(target.with_stem(f"{target.stem}-{number}"))',
        ]
        imports += [("pathlib", "Path")]
    peak = (
        'if DEVICE.type == "cuda":',
        '    print(f"peak memory {torch.cuda.max_memory_reserved() / 1e9:.2f} GB")',
    )
    return Part((*lines, *peak), imports=tuple(imports))
