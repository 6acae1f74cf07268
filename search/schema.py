"""The JSON schema of sweep files, with which editors complete and check them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from search.spec import LEAVES, SweepSpec


def json_schema() -> dict[str, Any]:
    """The schema of a sweep file, JSON Schema draft 2020-12.

    It knows the keys of `parameters` and what each may be, but not the rules between settings:
    what it lets pass may still be refused when the file is read.
    """
    schema = SweepSpec.model_json_schema()
    schema["properties"]["parameters"] |= _parameters()
    search = schema["$defs"]["SearchConfig"]["properties"]
    for name in ("sampler", "scheduler"):
        kinds = schema["$defs"][f"{name.capitalize()}Config"]["properties"]["type"]["enum"]
        search[name] = {
            "anyOf": [{"enum": kinds}, {"$ref": search[name]["$ref"]}],
            "description": search[name]["description"],
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Thaw sweep",
        **_untitled(schema),
    }


def _parameters() -> dict[str, Any]:
    """`parameters` with the keys there are; settings of a section may also be nested as in W&B."""
    properties: dict[str, Any] = {path: _parameter(path) for path in LEAVES}
    for section in {path.rpartition(".")[0] for path in LEAVES if "." in path}:
        inner = {
            path.removeprefix(f"{section}."): s
            for path, s in properties.items()
            if path.startswith(f"{section}.")
        }
        properties[section] = {
            "type": "object",
            "properties": {
                "parameters": {"type": "object", "properties": inner, "additionalProperties": False}
            },
            "required": ["parameters"],
            "additionalProperties": False,
        }
    return {"properties": dict(sorted(properties.items())), "additionalProperties": False}


def _parameter(path: str) -> dict[str, Any]:
    leaf = LEAVES[path]
    common = {"$ref": "#/$defs/ParameterSpec", "description": leaf.description}
    value = TypeAdapter(leaf.annotation).json_schema()
    if "$defs" in value:  # its references would point nowhere
        return common
    return {**common, "properties": {"value": value, "values": {"type": "array", "items": value}}}


def _untitled(schema: Any) -> Any:
    """Without the titles that pydantic makes of the names."""
    if isinstance(schema, list):
        return [_untitled(s) for s in schema]
    if isinstance(schema, dict):
        return {k: _untitled(v) for k, v in schema.items() if not (k == "title" and isinstance(v, str))}
    return schema
