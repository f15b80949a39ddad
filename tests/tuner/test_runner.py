"""Every way a worker can end, with real processes. After each, nobody is left and the next job
works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import DeviceBusy
from registry.record import PeakMemory
from tests.tuner.fake_nvml import H100, FakeNvml
from tests.tuner.fake_worker import CPU, GENEROUS, JOB, MIB, Bench, trial_job, trial_result
from tuner.proc import process_table
from tuner.protocol import Event, Hello, Progress, TrialResult
from tuner.runner import Limits, Outcome
from tuner.sampler import Sample, Sampler

WELL_BEHAVED = "hello(); progress('load'); done()"


def our_children() -> set[int]:
    return {one.pid for one in process_table().values() if one.parent_pid == os.getpid()}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Fails the test if a process is left, or if the next job does not work."""
    before = our_children()
    bench = Bench(tmp_path)
    yield bench
    assert our_children() <= before
    assert bench.runner(WELL_BEHAVED).run(JOB, GENEROUS).result is not None


@pytest.fixture
def weighed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that notes `ready` finds the note `weighed` when its memory was weighed after
    that."""
    weigh = Sampler._weigh

    def noting(sampler: Sampler) -> None:
        is_ready = (bench.notes / "ready").exists()
        weigh(sampler)
        if is_ready:
            (bench.notes / "weighed").touch()

    monkeypatch.setattr(Sampler, "_weigh", noting)


def failure_of(outcome: Outcome) -> tuple[str, str]:
    assert outcome.result is None
    assert outcome.failure is not None
    return outcome.failure.kind, outcome.failure.message


def test_result_with_events_in_order(bench: Bench) -> None:
    seen: list[Event] = []
    runner = bench.runner("hello(); progress('load'); progress('steps'); done()")
    outcome = runner.run(JOB, GENEROUS, seen.append)
    assert outcome.failure is None
    assert outcome.result is seen[-1]
    assert isinstance(outcome.hello, Hello)
    assert [event.phase for event in seen if isinstance(event, Progress)] == ["load", "steps"]
    assert 0 < outcome.duration_s < 60


def test_output_goes_to_the_log_and_not_into_events(bench: Bench) -> None:
    runner = bench.runner("print('a library talks', flush=True); hello(); done()")
    outcome = runner.run(JOB, GENEROUS)
    assert outcome.result is not None
    assert outcome.log_path.read_text() == "a library talks\n"


def test_event_in_pieces_and_a_large_one(bench: Bench) -> None:
    seen: list[Event] = []
    body = """
    hello()
    line = json.dumps({"event": "progress", "phase": "load", "detail": "x" * 300_000}).encode()
    for start in range(0, len(line), 50_000):
        write(line[start:start + 50_000])
    write(b"\\n")
    done()
    """
    assert bench.runner(body).run(JOB, GENEROUS, seen.append).result is not None
    assert isinstance(seen[1], Progress)
    assert len(seen[1].detail) == 300_000


def test_result_stands_however_the_worker_ends_after_it(bench: Bench) -> None:
    runner = bench.runner("hello(); done(); os.kill(os.getpid(), signal.SIGSEGV)")
    assert runner.run(JOB, GENEROUS).result is not None


def test_failure_that_the_worker_describes(bench: Bench) -> None:
    body = """
    hello()
    say({"event": "failure", "kind": "out_of_memory", "message": "CUDA out of memory"})
    sys.exit(1)
    """
    outcome = bench.runner(body).run(JOB, GENEROUS)
    assert failure_of(outcome) == ("out_of_memory", "CUDA out of memory")


def test_exit_without_a_result_shows_the_last_words(bench: Bench) -> None:
    kind, message = failure_of(
        bench.runner("hello(); progress('compile'); raise RuntimeError('no kernel')").run(
            JOB, GENEROUS
        )
    )
    assert kind == "crashed"
    assert "exit code 1 in phase compile" in message
    assert "RuntimeError: no kernel" in message


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGFPE"])
def test_death_by_a_signal_names_it(bench: Bench, name: str) -> None:
    outcome = bench.runner(f"hello(); os.kill(os.getpid(), signal.{name})").run(JOB, GENEROUS)
    kind, message = failure_of(outcome)
    assert kind == "crashed"
    assert name in message
    assert outcome.failure is not None
    assert outcome.failure.exit_code is not None
    assert outcome.failure.exit_code < 0


def test_kill_by_the_kernel_for_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([3, 4])
    monkeypatch.setattr("tuner.host.oom_kills", lambda: next(counts))
    outcome = bench.runner("hello(); os.kill(os.getpid(), signal.SIGKILL)").run(JOB, GENEROUS)
    monkeypatch.undo()
    kind, message = failure_of(outcome)
    assert kind == "out_of_memory"
    assert "kernel" in message


def test_hang_in_silence(bench: Bench) -> None:
    runner = bench.runner("hello(); progress('compile'); time.sleep(600)")
    kind, message = failure_of(runner.run(JOB, Limits(wall_s=60, progress_s=0.5)))
    assert kind == "timeout"
    assert message == "no sign of life for 0.5 s in phase compile"


def test_hang_before_the_first_word(bench: Bench) -> None:
    runner = bench.runner("time.sleep(600)")
    kind, message = failure_of(runner.run(JOB, Limits(wall_s=60, progress_s=0.3)))
    assert (kind, message) == ("timeout", "no sign of life for 0.3 s in phase start")


def test_endless_progress_meets_the_wall(bench: Bench) -> None:
    body = """
    hello()
    while True:
        progress("steps")
        time.sleep(0.05)
    """
    limits = Limits(wall_s=2, progress_s=1.5)
    kind, message = failure_of(bench.runner(body).run(JOB, limits))
    assert (kind, message) == ("timeout", "not finished after 2 s, in phase steps")


def test_worker_that_ignores_sigterm_is_killed(bench: Bench) -> None:
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    tell("pid", os.getpid())
    time.sleep(600)
    """
    kind, _ = failure_of(bench.runner(body).run(JOB, Limits(wall_s=60, progress_s=0.5)))
    assert kind == "timeout"
    assert int(bench.note("pid")) not in process_table()


def test_worker_may_say_goodbye_on_sigterm(bench: Bench) -> None:
    body = """
    def leave(*_):
        tell("goodbye", "yes")
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    hello()
    time.sleep(600)
    """
    bench.runner(body, kill_grace_s=10).run(JOB, Limits(wall_s=60, progress_s=0.5))
    assert bench.note("goodbye") == "yes"


GRANDCHILD = """
child = subprocess.Popen(
    [sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=True
)
tell("grandchild", child.pid)
"""


@pytest.mark.parametrize(
    "ending", ["done()", "os._exit(3)", "time.sleep(600)", "os.kill(os.getpid(), signal.SIGKILL)"]
)
def test_grandchild_in_its_own_session_is_found(bench: Bench, ending: str) -> None:
    runner = bench.runner(f"hello(){GRANDCHILD}{ending}")
    runner.run(JOB, Limits(wall_s=60, progress_s=0.8))
    assert int(bench.note("grandchild")) not in process_table()


def test_grandchild_that_hides_its_environment_and_session(bench: Bench) -> None:
    """Its parent ends at once, so it is adopted; its session was seen while it was in the tree."""
    body = """
    hello()
    code = (
        "import os, time, subprocess, sys\\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'],"
        " env={})\\n"
        "print(child.pid, flush=True)\\n"
        "time.sleep(1)"
    )
    middle = subprocess.Popen(
        [sys.executable, "-S", "-c", code], start_new_session=True, stdout=subprocess.PIPE
    )
    tell("grandchild", middle.stdout.readline().decode().strip())
    middle.wait()
    done()
    """
    assert bench.runner(body).run(JOB, GENEROUS).result is not None
    assert int(bench.note("grandchild")) not in process_table()


def test_device_memory_over_the_cap_on_a_cpu(bench: Bench) -> None:
    body = """
    hello(host_baseline_bytes=pss())
    progress("load")
    kept = b"x" * (300 * 2**20)
    time.sleep(600)
    """
    limits = Limits(wall_s=60, progress_s=60, device_bytes=100 * MIB)
    outcome = bench.runner(body).run(JOB, limits)
    kind, message = failure_of(outcome)
    assert kind == "out_of_memory"
    assert message.startswith("device memory reached 0.")
    assert message.endswith("in phase load; the limit is 0.10 GB")
    assert outcome.device_growth_peak_bytes > 100 * MIB


def test_host_memory_over_the_cap_counts_children(bench: Bench) -> None:
    body = """
    hello(host_baseline_bytes=10**12)
    code = "import time; kept = b'x' * (200 * 2**20); time.sleep(600)"
    subprocess.Popen([sys.executable, "-S", "-c", code])
    time.sleep(600)
    """
    limits = Limits(wall_s=60, progress_s=60, device_bytes=100 * MIB, host_bytes=150 * MIB)
    kind, message = failure_of(bench.runner(body).run(JOB, limits))
    assert kind == "out_of_memory"
    assert message.startswith("host memory reached 0.")


@pytest.mark.usefixtures("weighed")
def test_memory_of_compilers_is_not_the_models(bench: Bench) -> None:
    """A process called cc1plus, as the C++ compiler's is."""
    body = """
    os.symlink(sys.executable, os.path.join(NOTES, "cc1plus"))
    hello(host_baseline_bytes=0)
    code = "import time; kept = b'x' * (300 * 2**20); print('full', flush=True); time.sleep(600)"
    child = subprocess.Popen(
        [os.path.join(NOTES, "cc1plus"), "-S", "-c", code], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    tell("ready", "yes")
    until_noted("weighed")
    done()
    """
    outcome = bench.runner(body).run(JOB, GENEROUS)
    assert outcome.result is not None
    assert outcome.host_peak_bytes < 150 * MIB


@pytest.mark.usefixtures("weighed")
def test_short_peak_between_two_weighings_is_seen(bench: Bench) -> None:
    body = """
    hello(host_baseline_bytes=pss())
    progress("load")
    kept = b"x" * (200 * 2**20)
    del kept
    time.sleep(0.1)
    progress("steps")
    tell("ready", "yes")
    until_noted("weighed")
    done()
    """
    outcome = bench.runner(body).run(JOB, GENEROUS)
    assert 190 * MIB < outcome.device_growth_peak_bytes < 230 * MIB


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("write(b'garbage\\n')", "Invalid JSON"),
        ("hello(); write(b'garbage\\n')", "Invalid JSON"),
        ("hello(); say({'event': 'unheard of'})", "unheard of"),
        ("hello(); say({'event': 'progress'})", "Field required"),
        ("hello(); say({'event': 'progress', 'phase': 'x', 'more': 1})", "more"),
        ("done()", "the first event is no hello"),
        ("hello(); write(b'\\xff\\xfe\\n')", "Invalid JSON"),
    ],
)
def test_broken_protocol(bench: Bench, body: str, words: str) -> None:
    kind, message = failure_of(bench.runner(body + "; time.sleep(600)").run(JOB, GENEROUS))
    assert kind == "crashed"
    assert message.startswith("protocol: ")
    assert words in message


def test_endless_line_is_cut_off(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.event_stream.MAX_EVENT_BYTES", MIB)
    body = """
    hello()
    while True:
        write(b"x" * 65536)
    """
    kind, message = failure_of(bench.runner(body).run(JOB, GENEROUS))
    assert (kind, message) == ("crashed", f"protocol: an event of more than {MIB} bytes")


def test_other_protocol_says_how_to_install_ours(bench: Bench) -> None:
    body = "say({'event': 'hello', 'protocol': 99, 'tuner_version': '7.0'}); time.sleep(600)"
    kind, message = failure_of(bench.runner(body).run(JOB, GENEROUS))
    assert kind == "unsupported"
    assert "tuner 7.0, which speaks protocol 99" in message
    assert f"{sys.executable} -m pip install 'diffusion-tuner[run]==" in message


def test_interpreter_without_tuner(bench: Bench) -> None:
    command = (sys.executable, "-S", "-E", "-m", "tuner.pipeline.worker")
    kind, message = failure_of(bench.runner("", worker_command=command).run(JOB, GENEROUS))
    assert kind == "unsupported"
    assert "has no module tuner" in message
    assert "pip install" in message


@pytest.mark.parametrize("name", ["no-such-python", ""])
def test_interpreter_that_cannot_be_started(bench: Bench, name: str) -> None:
    path = str(bench.folder / name)
    kind, message = failure_of(bench.runner("", worker_command=(path,)).run(JOB, GENEROUS))
    assert kind == "unsupported"
    assert "cannot be started" in message


def test_error_in_a_listener_ends_the_worker(bench: Bench) -> None:
    def refuse(event: Event) -> None:
        if event.event == "progress":
            raise LookupError("listener")

    runner = bench.runner("hello(); tell('pid', os.getpid()); progress('load'); time.sleep(600)")
    with pytest.raises(LookupError, match="listener"):
        runner.run(JOB, GENEROUS, refuse)
    assert int(bench.note("pid")) not in process_table()


def test_keyboard_interrupt_ends_the_worker_and_passes_through(bench: Bench) -> None:
    def interrupt(event: Event) -> None:
        if event.event == "progress":
            raise KeyboardInterrupt

    runner = bench.runner("hello(); tell('pid', os.getpid()); progress('load'); time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        runner.run(JOB, GENEROUS, interrupt)
    assert int(bench.note("pid")) not in process_table()


@pytest.mark.usefixtures("weighed")
def test_samples_for_a_live_view(bench: Bench) -> None:
    samples: list[Sample] = []
    body = """
    hello(host_baseline_bytes=pss())
    progress("load")
    kept = b"x" * (64 * 2**20)
    tell("ready", "yes")
    until_noted("weighed")
    done()
    """
    bench.runner(body).run(JOB, GENEROUS, on_sample=samples.append)
    last = samples[-1]
    assert last.phase == "load"
    assert last.host_bytes > 64 * MIB
    assert 60 * MIB < last.device_growth_bytes < 100 * MIB


def test_what_is_compiled_once_more_for_others_is_no_peak(bench: Bench) -> None:
    body = """
    hello(host_baseline_bytes=pss())
    progress("steps")
    progress("capture")
    kept = b"x" * (64 * 2**20)
    until_noted("seen")
    done()
    """

    def see(sample: Sample) -> None:
        if sample.phase == "capture" and sample.device_growth_bytes > 60 * MIB:
            (bench.notes / "seen").touch()

    outcome = bench.runner(body).run(JOB, GENEROUS, on_sample=see)
    assert outcome.result is not None
    assert outcome.device_growth_peak_bytes < 30 * MIB


def test_trial_result_is_completed_with_what_was_seen(bench: Bench) -> None:
    body = f"""
    hello(host_baseline_bytes=pss())
    progress("load")
    kept = b"x" * (64 * 2**20)
    until_noted("loaded")
    progress("steps")
    until_noted("heard")  # until the event is read, samples count to the load
    more = b"x" * (64 * 2**20)
    until_noted("stepped")
    tell("device", job["device_index"])
    tell("variables", json.dumps(dict(os.environ)))
    say(json.loads({trial_result(PeakMemory(peak_vram_bytes=0, load_peak_vram_bytes=0))!r}))
    """

    def hear(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "steps":
            (bench.notes / "heard").touch()

    def see(sample: Sample) -> None:
        for name, phase, grown_mib in (("loaded", "load", 60), ("stepped", "steps", 120)):
            if sample.phase == phase and sample.device_growth_bytes > grown_mib * MIB:
                (bench.notes / name).touch()

    job = trial_job(bench.folder / "compiled")
    outcome = bench.runner(body).run(job, GENEROUS, hear, on_sample=see)
    assert isinstance(outcome.result, TrialResult)
    memory = outcome.result.measurement.memory
    assert 120 * MIB < memory.peak_vram_bytes < 160 * MIB
    assert 60 * MIB < memory.load_peak_vram_bytes < 90 * MIB
    assert memory.device_growth_peak_bytes == outcome.device_growth_peak_bytes
    assert memory.host_peak_bytes == outcome.host_peak_bytes > memory.peak_vram_bytes
    assert bench.note("device") == "None"
    assert str(bench.folder / "compiled") in bench.note("variables")


def test_a_process_that_comes_to_the_gpu_ends_the_trial(bench: Bench) -> None:
    """Its own pid is what the driver shows of the worker; the stranger comes while it sleeps."""
    strangers: list[subprocess.Popen[bytes]] = []

    def processes() -> list[int]:
        if not (bench.notes / "pid").exists():
            return []
        if not strangers:
            strangers.append(subprocess.Popen(["sleep", "60"]))
        return [int(bench.note("pid")), strangers[0].pid]

    body = "hello(); tell('pid', os.getpid()); time.sleep(60); done()"
    gpu = replace(CPU, device_index=0, device_uuid=H100.uuid)
    nvml = FakeNvml(processes=processes)
    runner = bench.runner(body, detection=gpu, nvml=nvml, kill_grace_s=30.0)
    runner.yields = True
    try:
        with pytest.raises(DeviceBusy, match=r"process \d+ came to use the device"):
            runner.run(JOB, GENEROUS)
        assert strangers[0].poll() is None, "the stranger is left alone"
    finally:
        for stranger in strangers:
            stranger.kill()
            stranger.wait()


def test_without_being_asked_no_way_is_given(bench: Bench) -> None:
    gpu = replace(CPU, device_index=0, device_uuid=H100.uuid)
    nvml = FakeNvml(processes=lambda: [os.getpid()])
    runner = bench.runner(WELL_BEHAVED, detection=gpu, nvml=nvml)
    assert runner.run(JOB, GENEROUS).result is not None
