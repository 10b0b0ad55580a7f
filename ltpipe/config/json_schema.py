"""JSON schema of experiment files, for editors; generated from the models and the catalogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltpipe.config import catalogue
from ltpipe.config.experiment import Experiment
from ltpipe.run.outputs import Output

SCHEMA = Path("configs") / "schema" / "experiment.schema.json"


def experiment_schema() -> dict[str, Any]:
    """Return the schema. No key is required of a file, as parents may give it; unknown keys are errors."""
    schema = Experiment.model_json_schema()
    blocks = schema["$defs"]
    for block in (schema, *blocks.values()):
        block.pop("required", None)
        block["properties"] = {name: _nullable(value) for name, value in block["properties"].items()}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "ltpipe experiment"
    extends = {"type": "string", "description": "parent experiment, relative to this file"}
    schema["properties"] = {"extends": extends, **schema["properties"]}
    own = blocks["Calibrator"]["properties"]
    trained = {
        "schedule": {"$ref": "#/$defs/CalibrationSchedule"},
        **{key: own[key] for key in ("seed", "checkpoint", "choose", "after")},
    }
    places = {
        "classifier": (blocks["Model"]["properties"], "classifier"),
        "loss": (blocks["Model"]["properties"], "loss"),
        "mask": (blocks["Model"]["properties"], "mask"),
        "part": (blocks["Model"]["properties"]["parts"]["anyOf"][0], "items"),
        "sampler": (blocks["Base"]["properties"], "sampler"),
        "calibrator": (blocks, "Calibrator"),
    }
    for slot, (owner, key) in places.items():
        given = {k: v for k, v in owner[key].items() if k in ("description", "default")}
        shared = trained if slot == "calibrator" else {}
        owner[key] = {**given, "anyOf": [_method(slot, name, shared) for name in catalogue.names(slot)]}
    blocks.pop("Choice")
    generate = catalogue.toy_options().model_json_schema()
    blocks["Dataset"]["properties"]["generate"]["anyOf"] = [_object(generate), {"type": "null"}]
    calibrators = schema["properties"]["calibrate"]["anyOf"][0]["patternProperties"]
    calibrators.update({pattern: _nullable(value) for pattern, value in calibrators.items()})
    return schema


def _nullable(value: dict[str, Any]) -> dict[str, Any]:
    """Also accept null, which takes back what a parent gives."""
    described: dict[str, Any] = {key: value[key] for key in ("description", "default") if key in value}
    return {**described, "anyOf": [{k: v for k, v in value.items() if k not in described}, {"type": "null"}]}


def _method(slot: str, name: str, shared: dict[str, Any]) -> dict[str, Any]:
    """Schema of one method with its options."""
    entry = catalogue.find(slot, name)
    options = _object(entry.options.model_json_schema())
    options["properties"] = {"type": {"const": name}, **options["properties"], **shared}
    return {"description": entry.summary, **options, "required": ["type"]}


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": schema.get("properties", {}), "additionalProperties": False}


def schema_text() -> str:
    """The schema as it is committed."""
    return json.dumps(experiment_schema(), indent=1, sort_keys=False) + "\n"


def write_schema(path: Path = SCHEMA) -> None:
    """Write the schema file, atomically.

    Raises:
        UserError: The file is not as ltpipe wrote it, and would change.
    """
    with Output(path, "schema", at_once=False).write() as temporary:
        temporary.write_text(schema_text(), encoding="utf-8")
