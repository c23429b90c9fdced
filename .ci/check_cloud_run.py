#!/usr/bin/env python3
"""Hold Cloud Run's files to Cloud Run's own description of its API, which Google's client carries.

Usage: check_cloud_run.py FILE…
`gcloud run … replace` hands a file to that API as it is. A member that the description does not know is refused here as it is there.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

API = json.loads(files("googleapiclient").joinpath("discovery_cache/documents/run.v1.json").read_text(encoding="utf-8"))


def closed(schema: Any) -> Any:
    """One of the description's schemas as JSON Schema has it: its references named in full, and no member allowed beyond its own."""
    if isinstance(schema, list):
        return [closed(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: closed(value) for key, value in schema.items() if key not in {"id", "description", "format", "default", "required"}
    }
    if "$ref" in schema:
        made["$ref"] = f"#/$defs/{schema['$ref']}"
    if "properties" in schema:
        # There, `properties` maps names; a member that is called `id`, say, is no keyword.
        made["properties"] = {name: closed(value) for name, value in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


def problems(file: str) -> list[str]:
    document = YAML(typ="safe").load(Path(file))
    kind = document.get("kind")
    if kind not in {"Service", "Job"}:
        return [f"{file}: kind is {kind!r}, not Service or Job"]
    schema = {"$defs": {name: closed(value) for name, value in API["schemas"].items()}, "$ref": f"#/$defs/{kind}"}
    found = Draft202012Validator(schema).iter_errors(document)
    return [f"{file}: {'.'.join(map(str, error.absolute_path)) or 'at the top'}: {error.message}" for error in found]


told = [problem for file in sys.argv[1:] for problem in problems(file)]
sys.stderr.writelines(f"{problem}\n" for problem in told)
sys.exit(bool(told))
