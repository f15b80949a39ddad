"""Writes docs/plan.schema.json from the plan's own types; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from registry.plan import Plan

TARGET = Path(__file__).resolve().parent.parent / "docs" / "plan.schema.json"


def plan_schema() -> str:
    """The JSON Schema (draft 2020-12) of a plan, as it is written to a file."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Plan.model_json_schema(mode="validation"),
    }
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    """Exit code 1 if `--check` finds the file missing or out of date."""
    wanted = plan_schema()
    if "--check" not in arguments:
        TARGET.write_text(wanted, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{TARGET.name} is out of date; run: python scripts/make_schema.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
