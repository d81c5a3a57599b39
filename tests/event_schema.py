"""The schema of the lines that ``lockbuild --json`` prints, as users have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

SCHEMA = json.loads(Path(__file__).parents[1].joinpath("docs", "events.schema.json").read_text())


def assert_documented(event: Mapping[str, Any]) -> None:
    """Check that the schema has an event with these fields, and no field has been left out of it."""
    jsonschema.validate(event, SCHEMA)
    documented = [
        each for each in SCHEMA["anyOf"] if each.get("properties", {}).get("event") == {"const": event["event"]}
    ]
    documented += [SCHEMA["$defs"]["failure"]] if event["event"] == "error" else []
    assert any(event.keys() <= {"event", *each["properties"]} for each in documented)
