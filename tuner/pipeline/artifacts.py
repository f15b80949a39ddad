"""The portable compile cache of torch: written after a proof, read before the first compile."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from registry.errors import UntrustedArtifact


def save_compile_cache(path: Path) -> int:
    """Write this process's compile cache. Returns its size in bytes, 0 if nothing was compiled."""
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return 0
    path.write_bytes(saved[0])
    return len(saved[0])


def load_compile_cache(path: Path, sha256: str) -> bool:
    """Load a cache whose signature over `sha256` the parent verified. True if torch took it.

    Loading runs code, so the digest is checked on the very bytes given to torch.
    Raises UntrustedArtifact if they are others.
    """
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UntrustedArtifact(
            f"compile cache {path.name} has digest {found}, its signature is for {sha256}"
        )
    return torch.compiler.load_cache_artifacts(data) is not None


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
