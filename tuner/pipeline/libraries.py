"""C++ that Inductor compiled: what this process has loaded of it, and how it would compile more."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from tuner.compiled_code import NAMES

MAPS = Path("/proc/self/maps")


def loaded_libraries(folder: Path) -> frozenset[str]:
    """The libraries of kernels in Inductor's cache `folder` that this process has mapped, by their
    paths in it. None where the kernel does not list them."""
    if not MAPS.exists():
        return frozenset()
    begin = f"{folder.resolve()}/"
    mapped = (line.split(maxsplit=5)[-1] for line in MAPS.read_text().splitlines())
    names = (path.removeprefix(begin) for path in mapped if path.startswith(begin))
    return frozenset(name for name in names if NAMES["library"].fullmatch(name))


@cache
def compiler_digest() -> str:
    """Of the command that compiles a kernel. Inductor names a library by its source and by this
    command, in which the folders of Python and torch stand. The processor's instructions are left
    out: finding them takes compilations."""
    from torch._inductor.cpp_builder import CppBuilder, CppTorchDeviceOptions
    from torch._inductor.cpu_vec_isa import invalid_vec_isa

    options = CppTorchDeviceOptions(
        vec_isa=invalid_vec_isa, device_type="cpu", include_pytorch=False, shared=True
    )
    command = CppBuilder(name="o", sources="i", BuildOption=options).get_command_line()
    return hashlib.sha256(command.encode()).hexdigest()
