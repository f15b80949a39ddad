"""What a worker is started with: the user's environment without what the plan decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.errors import TrialFailed
from registry.plan import ProcessOptions
from tuner.spawn import worker_environment, write_job


def test_the_plan_decides() -> None:
    made = worker_environment(
        {"HF_TOKEN": "t", "PATH": "/bin", "OMP_NUM_THREADS": "3"},
        ProcessOptions(expandable_segments=True, threads=8),
        "/cache/abc",
        "GPU-1111",
    )
    assert made["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert made["OMP_NUM_THREADS"] == made["MKL_NUM_THREADS"] == "8"
    assert made["TORCHINDUCTOR_CACHE_DIR"] == "/cache/abc"
    assert made["TRITON_CACHE_DIR"] == "/cache/abc/triton"
    assert made["CUDA_VISIBLE_DEVICES"] == "GPU-1111"
    assert made["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert made["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert made["PYTHONUNBUFFERED"] == "1"
    assert made["PYTHONFAULTHANDLER"] == "1"
    assert (made["HF_TOKEN"], made["PATH"]) == ("t", "/bin")


def test_a_plan_that_says_nothing_leaves_the_machines_threads() -> None:
    made = worker_environment({"OMP_NUM_THREADS": "3"}, ProcessOptions(), None, None)
    assert made["OMP_NUM_THREADS"] == "3"
    assert made["CUDA_VISIBLE_DEVICES"] == ""
    assert not {"PYTORCH_CUDA_ALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"} & set(
        made
    )


@pytest.mark.parametrize(
    "name",
    [
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "TORCHINDUCTOR_MAX_AUTOTUNE",
        "TORCHDYNAMO_DISABLE",
        "TORCH_COMPILE_DISABLE",
        "TORCHAO_AUTOTUNER_DATA_PATH",
        "CUDA_LAUNCH_BLOCKING",
        "NVIDIA_TF32_OVERRIDE",
        "PYTHONHOME",
    ],
)
def test_what_would_change_a_plan_is_dropped(name: str) -> None:
    assert name not in worker_environment({name: "1"}, ProcessOptions(), None, None)


def test_base_is_left_as_it_was() -> None:
    base = {"PYTHONHOME": "/x"}
    worker_environment(base, ProcessOptions(threads=1), None, None)
    assert base == {"PYTHONHOME": "/x"}


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrialFailed, match="cannot write the trial's folder"):
        write_job(tmp_path / "file" / "trial", b"{}")
