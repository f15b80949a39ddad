"""Writes docs/plan.schema.json from the plan's own types; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from registry.plan import COMPONENT_NAME, INDUCTOR_OPTIONS, Plan

TARGET = Path(__file__).resolve().parent.parent / "docs" / "plan.schema.json"
JSON_TYPES = {bool: "boolean", int: "integer", str: "string"}


def plan_schema() -> str:
    """The JSON Schema (draft 2020-12) of a plan, as it is written to the file."""
    schema = Plan.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    definitions["Compilation"]["properties"]["inductor_options"] = inductor_options()
    components = definitions["PipelineOptions"]["properties"]["components"]
    components["propertyNames"] = {"pattern": f"^{COMPONENT_NAME.pattern}$"}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def inductor_options() -> dict[str, Any]:
    """The allow-list, which a validator holds and pydantic's own schema cannot know."""
    return {
        "type": "object",
        "title": "Inductor Options",
        "default": {},
        "additionalProperties": False,
        "properties": {name: {"type": JSON_TYPES[kind]} for name, kind in INDUCTOR_OPTIONS.items()},
    }


def main(arguments: list[str]) -> int:
    """Exit code 1 if `--check` finds the file missing or out of date."""
    wanted = plan_schema()
    if "--check" not in arguments:
        TARGET.write_text(wanted, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == wanted:
        return 0
    print(f"{TARGET.name} is out of date; run: scripts/check --fix", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
