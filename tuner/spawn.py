"""Starting a worker: its environment, its descriptors, its folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from registry.errors import TrialFailed
from registry.plan import ProcessOptions
from tuner.processes import PARENT_VARIABLE, TRIAL_VARIABLE
from tuner.protocol import AHEAD, EVENT_FD_VARIABLE

# Left over from the user's shell, these would change what a plan alone should decide.
DROPPED_PREFIXES = ("TORCHINDUCTOR_", "TORCHDYNAMO_", "TORCHAO_AUTOTUNER_", "TORCH_COMPILE_")
DROPPED = (
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTHONHOME",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
ALWAYS = {
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
JOB_FILE = "job.json"
LOG_FILE = "worker.log"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Worker:
    """A started worker. `events` is our end of its event pipe, non-blocking."""

    process: subprocess.Popen[bytes]
    events: int
    log_path: Path
    trial_id: str

    @property
    def folder(self) -> Path:
        return self.log_path.parent


def worker_environment(
    base: Mapping[str, str],
    process_options: ProcessOptions,
    compile_cache_dir: str | None,
    device_uuid: str | None,
) -> dict[str, str]:
    """What a worker is started with: `base` without what a plan decides, and what it decides.

    The worker sees the GPU `device_uuid` alone, as CUDA device 0; None hides every GPU.
    """
    environment = {name: value for name, value in base.items() if not _is_dropped(name)}
    environment |= ALWAYS | {"CUDA_VISIBLE_DEVICES": device_uuid or ""}
    if process_options.expandable_segments:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    if process_options.threads is not None:
        environment |= dict.fromkeys(THREAD_VARIABLES, str(process_options.threads))
    if compile_cache_dir is not None:
        environment["TORCHINDUCTOR_CACHE_DIR"] = compile_cache_dir
        environment["TRITON_CACHE_DIR"] = str(Path(compile_cache_dir) / "triton")
    return environment


def write_job(folder: Path, job_json: bytes) -> None:
    """A file and not a pipe: a worker that never reads cannot block us. Raises TrialFailed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB_FILE).write_bytes(job_json)
    except OSError as error:
        raise TrialFailed(
            f"cannot write the trial's folder {folder}: {error.strerror}",
            hint="Make room and the folder writable, or name another one with TUNER_HOME.",
        ) from error


def start_worker(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    trial_id: str,
    kept_descriptors: Iterable[int] = (),
    ahead: bool = False,
) -> Worker:
    """Starts `command` in a session of its own, with the job in `folder` as its standard input.
    With `ahead` there is no job yet: its standard input is a pipe.

    The worker starts in `folder`, so that no module of the user's current folder shadows one of its
    own. Must be called from a thread that lives as long as the worker. Raises OSError.
    """
    log_path = folder / LOG_FILE
    events, worker_end = os.pipe()
    os.set_blocking(events, False)
    variables = {
        EVENT_FD_VARIABLE: str(worker_end),
        TRIAL_VARIABLE: trial_id,
        PARENT_VARIABLE: str(os.getpid()),
    }
    try:
        with _job_of(folder, ahead=ahead) as job, log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, AHEAD] if ahead else command,
                stdin=job,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, **variables},
                pass_fds=(worker_end, *kept_descriptors),
                start_new_session=True,
            )
    except BaseException:
        os.close(events)
        raise
    finally:
        os.close(worker_end)
    return Worker(process, events, log_path, trial_id)


@contextmanager
def _job_of(folder: Path, *, ahead: bool) -> Iterator[IO[bytes] | int]:
    if ahead:
        yield subprocess.PIPE
        return
    with (folder / JOB_FILE).open("rb") as job:
        yield job


def _is_dropped(name: str) -> bool:
    return name in DROPPED or name.startswith(DROPPED_PREFIXES)
