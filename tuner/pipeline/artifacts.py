"""Compiled code that a process leaves for others: captured after a proof, used before the first
compilation.

Functions compiled ahead of time (`ahead`) come first. What they do not serve is compiled with a
cache: on a GPU torch's portable one. On a CPU that holds graphs without the C++ libraries that they
call, and saves little: there the entries of Inductor's own folder are taken.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from registry.errors import TunerError, UntrustedArtifact
from registry.record import WarmStart
from tuner.code_folder import place, private_folder
from tuner.compiled_code import NAMES, CodePart, CompiledCode, EntryKind, pack, unpack
from tuner.pipeline.ahead import Ahead
from tuner.pipeline.libraries import compiler_digest, loaded_libraries
from tuner.torch_cache import check_torch_cache

PROBES = "[a-z0-9][a-z0-9]/*.so"
LIBRARY_SUFFIX = ".main.so"


class UnusableArtifact(TunerError):
    """Compiled code that was made by a trusted key, and is of no use here."""


class Warmth:
    """Counts what this process takes from compiled code, from the moment it was made available.
    Torch counts for the whole process: other compilations in it are counted too."""

    def __init__(self, folder: Path, libraries: frozenset[str], ahead: Ahead) -> None:
        self._folder, self._libraries, self.ahead = folder, libraries, ahead
        self._before = compile_counters()

    def counted(self) -> WarmStart:
        now, before = compile_counters(), self._before
        loaded = loaded_libraries(self._folder)
        return WarmStart(
            rung="ahead_of_time" if self.ahead.is_offered else "compile_cache",
            function_hits=len(self.ahead.hits),
            function_misses=len(self.ahead.misses),
            graph_hits=now["fxgraph_cache_hit"] - before["fxgraph_cache_hit"],
            graph_misses=now["fxgraph_cache_miss"] - before["fxgraph_cache_miss"],
            library_hits=len(loaded & self._libraries),
            library_misses=len(loaded - self._libraries),
            first_calls_s=self.ahead.first_calls_s,
        )


def save_compiled_code(
    path: Path, folder: Path, device: torch.device, functions: Sequence[CodePart] = ()
) -> int:
    """Write what this process compiled or took from the cache in `folder`, and `functions` that it
    compiled ahead of time, which must have been done before. Returns the size in
    bytes, 0 if there is nothing to keep.

    Raises UntrustedArtifact for a cache that could not be used again: of a kind unknown here.
    """
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return 0
    graphs = saved[1]
    code = _of_torch(saved[0]) if device.type == "cuda" else _of_folder(graphs, folder)
    data = pack(replace(code, parts=(*code.parts, *functions)))
    path.write_bytes(data)
    return len(data)


def _of_torch(data: bytes) -> CompiledCode:
    check_torch_cache(data)
    return CompiledCode((CodePart("torch_cache", "torch-cache", data),))


def _of_folder(graphs: Any, folder: Path) -> CompiledCode:
    """Of a folder that other processes use too, what this one has used. `graphs` names them."""
    inductor = (f"fxgraph/{key[1:3]}/{key}/*" for key in graphs.inductor_artifacts)
    autograd = (f"aotautograd/{key}/*" for key in graphs.aot_autograd_artifacts)
    parts = (
        *_files("graph", folder, inductor),
        *_files("autograd_graph", folder, autograd),
        *_files("library", folder, (*loaded_libraries(folder), *_probes(folder))),
    )
    return CompiledCode(parts, compiler_digest())


def _probes(folder: Path) -> Iterator[str]:
    """Inductor tries which instructions work with small libraries, in processes of their own."""
    for path in folder.glob(PROBES):
        if not path.name.endswith(LIBRARY_SUFFIX):
            yield path.relative_to(folder).as_posix()


def _files(kind: EntryKind, folder: Path, patterns: Iterable[str]) -> Iterator[CodePart]:
    """Files that another process is writing have names of another form."""
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in found:
        name = path.relative_to(folder).as_posix()
        if NAMES[kind].fullmatch(name):
            yield CodePart(kind, name, path.read_bytes())


def load_compiled_code(path: Path, sha256: str, folder: Path) -> Warmth:
    """As `use_compiled_code`, for a file whose signature over `sha256` the parent verified. Raises
    UntrustedArtifact too if its bytes are others."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UntrustedArtifact(
            f"compiled code {path.name} has digest {found}, its signature is for {sha256}"
        )
    return use_compiled_code(data, folder)


def use_compiled_code(data: bytes, folder: Path) -> Warmth:
    """Give torch what another process compiled, under `folder`, which becomes this process's cache
    for compiled code. `data` must be the very bytes whose signature was verified.

    The answer counts from now on what is taken from it. Raises UntrustedArtifact for bytes that are
    no compiled code and for a folder that is not private, UnusableArtifact where torch would not
    find it or does not take it, and OSError.
    """
    code = unpack(data)
    if code.compiler is not None and code.compiler != compiler_digest():
        raise UnusableArtifact(
            "its libraries were compiled with another compiler command: torch lies in another "
            "folder there, or other flags are set"
        )
    place(code.files, private_folder(folder))
    compile_into(folder)
    for part in code.of_kind("torch_cache"):
        if torch.compiler.load_cache_artifacts(part.data) is None:
            raise UnusableArtifact("torch did not take it")
    functions = {
        part.name.removeprefix("function/"): part.data for part in code.of_kind("function")
    }
    libraries = frozenset(part.name for part in code.of_kind("library"))
    return Warmth(folder, libraries, Ahead(functions))


def compile_into(folder: Path) -> None:
    """Both libraries look at these at each use; compiler processes are told of them."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")


def compile_counters() -> dict[str, int]:
    """Dynamo's and Inductor's counters that a plan is judged by."""
    from torch._dynamo.utils import counters

    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "graph_breaks": sum(counters["graph_break"].values()),
        "fxgraph_cache_hit": int(counters["inductor"]["fxgraph_cache_hit"]),
        "fxgraph_cache_miss": int(counters["inductor"]["fxgraph_cache_miss"]),
        "autograd_cache_hit": int(counters["aot_autograd"]["autograd_cache_hit"]),
        "autograd_cache_miss": int(counters["aot_autograd"]["autograd_cache_miss"]),
    }
