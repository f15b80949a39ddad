"""A worker for whole studies, without torch: answers jobs from a table, in a tenth of a second.

    python study_worker.py TABLE.json

The table holds `hello` and `inventory` as a worker would send them, and `rules`: each has `when`,
facts of a job that must all be so, and `then`, what changes in the answer; a rule with `first`
holds for so many jobs of these facts alone. Every job is noted in `jobs.jsonl` beside the table.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tuner.processes import PARENT_VARIABLE, die_with_parent

STEP_MS = {"none": 100.0, "int8_weight_only": 90.0, "int8_dynamic": 60.0, "mixed": 50.0}
BLOCKS = 6
"""Of tiny-flux, which has 32 tokens of text: its layers there gain nothing from int8."""
LAYER_MS = {"none": 0.5, "int8_weight_only": 0.45, "int8_dynamic": 0.2}
TEXT_ROWS = 32
SCOPE = {"none": 1.0, "regional": 0.5, "whole": 0.6}
MIB = 2**20
EVENTS = int(os.environ["TUNER_EVENT_FD"])


def say(event: dict[str, Any]) -> None:
    os.write(EVENTS, json.dumps(event).encode() + b"\n")


def main() -> None:
    die_with_parent(int(os.environ[PARENT_VARIABLE]))
    table_path = Path(sys.argv[1])
    job = received() if "--ahead" in sys.argv else json.load(sys.stdin)
    table = json.loads(table_path.read_text())
    facts = facts_of(job)
    with table_path.with_name("jobs.jsonl").open("a") as jobs:
        jobs.write(json.dumps({"facts": facts, "plan": job.get("plan")}) + "\n")
    say({**table["hello"], "host_baseline_bytes": pss_bytes()})
    if job["kind"] == "environment":
        say({"event": "environment_result"})
        return
    answer: dict[str, Any] = {}
    for rule in table["rules"]:
        if holds(rule, facts, table_path.with_name("jobs.jsonl")):
            answer |= rule["then"]
    misbehave(answer)
    if job["kind"] == "inventory":
        say({"event": "inventory_result", "inventory": table["inventory"]})
    elif job["kind"] == "time_blocks":
        for target in job["targets"][: answer.get("timed")]:
            say({"event": "timing", "timing": timing(target["key"])})
        if "timed" in answer:
            os.kill(os.getpid(), signal.SIGKILL)
        say({"event": "timing_result", "timed": len(job["targets"])})
    else:
        say(trial_result(job, facts, answer))


def received() -> Any:
    """The job of a worker that was started ahead of it, as soon as there is one."""
    say({"event": "ready"})
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(Path(json.loads(line)["job"]).read_text())


def holds(rule: dict[str, Any], facts: dict[str, Any], noted: Path) -> bool:
    if not matches(rule, facts):
        return False
    known = (json.loads(line)["facts"] for line in noted.read_text().splitlines())
    return rule.get("first") is None or sum(matches(rule, one) for one in known) <= rule["first"]


def matches(rule: dict[str, Any], facts: dict[str, Any]) -> bool:
    return all(facts.get(name) == value for name, value in rule["when"].items())


def facts_of(job: dict[str, Any]) -> dict[str, Any]:
    if job["kind"] != "trial":
        return {"kind": job["kind"]}
    pipeline = job["plan"]["pipeline"]
    denoiser = pipeline["components"].get("transformer", {})
    return {
        "kind": "trial",
        "rung": job["rung"],
        "scheme": denoiser.get("quantization", {}).get("scheme", "none"),
        "scope": denoiser.get("compilation", {}).get("scope", "none"),
        "placement": denoiser.get("placement", {}).get("kind", "resident"),
        "step_cache": (pipeline.get("step_cache") or {}).get("kind"),
        "baseline": job["reference_out"] is not None,
        "artifact": job["artifact_in"] is not None,
        "functions": b'"function"' in taken(job),
        "repeats": job["repeats"],
    }


def timing(key: dict[str, Any]) -> dict[str, Any]:
    """Blocks add up to the steps of trials."""
    scheme = key["scheme"]
    if key["kind"] == "block":
        share = SCOPE["none" if key["context"] == "eager" else "regional"]
        ms = STEP_MS.get(scheme, 95.0) * share / BLOCKS
    else:
        is_text = key["shape"][0] == TEXT_ROWS
        ms = 0.8 if is_text and scheme != "none" else LAYER_MS.get(scheme, 0.5)
    sqnr_db = 38.0 if key["kind"] == "linear" and scheme != "none" else None
    times = {"median_ms": ms, "mad_ms": 0.0, "samples": 7, "sqnr_db": sqnr_db}
    return {"key": key, "outcome": "measured", **times}


def misbehave(answer: dict[str, Any]) -> None:
    time.sleep(answer.get("takes_s", 0.0))
    sys.stdout.write(answer.get("prints", ""))
    sys.stdout.flush()
    if "failure" in answer:
        say({"event": "failure", "kind": answer["failure"], "message": "as the table says"})
        sys.exit(1)
    if "signal" in answer:
        os.kill(os.getpid(), signal.Signals[answer["signal"]])
    if "exit" in answer:
        sys.exit(answer["exit"])


def trial_result(
    job: dict[str, Any], facts: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    step_ms = STEP_MS.get(facts["scheme"], 95.0) * SCOPE[facts["scope"]]
    step_ms *= answer.get("slower", 1.0)
    measurement = {
        "rung": job["rung"],
        "shapes": [shape_times(job, shape, step_ms) for shape in job["workload"]["shapes"]],
        "memory": memory(answer.get("peak_bytes", 100 * MIB)),
        "load_s": answer.get("load_s", 0.1),
        "start_s": 0.1,
        "cold_first_image_s": 1.5 if job["artifact_in"] is None else None,
        "warm_first_image_s": 0.5 if job["artifact_in"] is not None else None,
        "warm_start": warm_start(job, answer),
        "layer_types": {"transformer": {"Linear": answer.get("layers", 10)}},
    }
    return {
        "event": "trial_result",
        "measurement": measurement,
        "scores": scores(job, answer),
        "calibrated": False,
        "artifact_bytes": capture(job, answer),
    }


def warm_start(job: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any] | None:
    if job["artifact_in"] is None:
        return None
    return {"rung": "compile_cache", "graph_hits": 4, **answer.get("warm_start", {})}


def shape_times(job: dict[str, Any], shape: dict[str, Any], step_ms: float) -> dict[str, Any]:
    latency_s = 4 * step_ms / 1000 + 0.05
    whole = job["rung"] != "denoiser"
    return {
        "shape": shape,
        "steps": 4,
        "step_ms": step_ms,
        "first_call_s": 0.2,
        "latency_samples_s": [latency_s] * 3 if whole else [],
        "latency_s": latency_s if whole else None,
    }


def memory(peak_bytes: int) -> dict[str, int]:
    return {
        "peak_vram_bytes": peak_bytes,
        "load_peak_vram_bytes": peak_bytes,
        "reserved_peak_bytes": peak_bytes,
    }


def scores(job: dict[str, Any], answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Against the reference, which must be whole; a baseline writes it."""
    if job["reference_out"] is not None:
        write_slowly(Path(job["reference_out"]) / "reference.json", b"{}")
    if job["reference_in"] is None:
        return []
    assert (Path(job["reference_in"]) / "reference.json").read_bytes() == b"{}"
    common = {"metric": "sqnr_db", "value": answer.get("sqnr_db", 40.0), "seed": job["seeds"][0]}
    return [
        {**common, "prompt": job["prompts"][0], "shape": shape}
        for shape in job["workload"]["shapes"]
    ]


def taken(job: dict[str, Any]) -> bytes:
    """What another process compiled."""
    return b"" if job["artifact_in"] is None else Path(job["artifact_in"]).read_bytes()


def capture(job: dict[str, Any], answer: dict[str, Any]) -> int:
    assert job["artifact_in"] is None or b"compiled" in taken(job)[:20]
    if job["artifact_out"] is None:
        return 0
    compiled = b"compiled " + json.dumps(job["plan"], sort_keys=True).encode()
    compiled = bytes.fromhex(answer.get("compiled", compiled.hex()))
    write_slowly(Path(job["artifact_out"]), compiled)
    return len(compiled)


def write_slowly(path: Path, data: bytes) -> None:
    """In two halves, so that a kill in between leaves one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(0.02)
        file.write(data[len(data) // 2 :])


def pss_bytes() -> int:
    with Path("/proc/self/smaps_rollup").open() as rollup:
        line = next(line for line in rollup if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
