"""Which of several GPUs is meant: by `--gpu`, by CUDA_VISIBLE_DEVICES, or by default."""

from __future__ import annotations

from registry.errors import InvalidInput
from tuner.nvml import Gpu

LONGEST_INDEX = 2


def visible_gpus(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs CUDA would show in a process with this CUDA_VISIBLE_DEVICES, in its order, and
    what is wrong with the value. As in CUDA, the list ends at its first unknown entry."""
    if visible is None:
        return gpus, None
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        match = next((one for one in gpus if _has_index(one, entry) or _has_uuid(one, entry)), None)
        if match is None:
            return tuple(chosen), _visible_problem(entry, visible)
        chosen.append(match)
    return tuple(chosen), None


def select_gpu(gpu: str, gpus: tuple[Gpu, ...]) -> Gpu:
    """The one device that `gpu` names. Raises InvalidInput listing what there is."""
    for fits in (_has_index, _has_uuid, _has_name_part):
        matches = [one for one in gpus if fits(one, gpu)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise InvalidInput(
                f"--gpu {gpu!r} fits several devices: {_listing(matches)}",
                hint="Give the index or the UUID of one of them.",
            )
    raise InvalidInput(
        f"--gpu {gpu!r} is no device of this machine; there are: {_listing(gpus)}",
        hint='Give an index, a UUID, a part of the name that fits one device, or "cpu".',
    )


def select_visible(gpu: str, gpus: tuple[Gpu, ...], visible: tuple[Gpu, ...]) -> Gpu:
    """`select_gpu` among the visible ones; a hidden one is told apart from one not there."""
    try:
        return select_gpu(gpu, visible)
    except InvalidInput:
        if visible == gpus:
            raise
        hidden = select_gpu(gpu, gpus)
    raise InvalidInput(
        f"--gpu {gpu!r} is hidden by CUDA_VISIBLE_DEVICES: {hidden.label}",
        hint="Unset CUDA_VISIBLE_DEVICES, or name that device in it.",
    )


def choice_notes(visible: tuple[Gpu, ...]) -> tuple[str, ...]:
    """What to tell a user who chose none of several."""
    if len(visible) == 1:
        return ()
    others = _listing(visible[1:])
    return (f"using GPU {visible[0].label}; --gpu chooses another: {others}",)


def _visible_problem(entry: str, visible: str) -> str:
    if not visible.strip():
        return "CUDA_VISIBLE_DEVICES is empty: it hides every GPU"
    return f"CUDA_VISIBLE_DEVICES={visible!r} names {entry!r}, which is no device of this machine"


def _has_index(gpu: Gpu, text: str) -> bool:
    """ "0" fits every slice of GPU 0 where MIG is on."""
    return text in (gpu.index, gpu.index.partition(":")[0])


def _has_uuid(gpu: Gpu, text: str) -> bool:
    return text.upper().startswith(("GPU-", "MIG-")) and gpu.uuid.lower().startswith(text.lower())


def _has_name_part(gpu: Gpu, text: str) -> bool:
    """Short numbers are indices: "0" must not mean the only "H100"."""
    if text.isdigit() and len(text) <= LONGEST_INDEX:
        return False
    return text.lower() in f"{gpu.name} {gpu.mig_profile or ''}".lower()


def _listing(gpus: tuple[Gpu, ...] | list[Gpu]) -> str:
    return "; ".join(gpu.label for gpu in gpus) or "none"
