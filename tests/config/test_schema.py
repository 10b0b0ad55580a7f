"""The committed JSON schema is the generated one, and accepts the committed experiments."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from ltpipe.config.json_schema import SCHEMA, experiment_schema, schema_text, write_schema
from ltpipe.config.yaml_positions import read_yaml

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "configs" / "experiments").rglob("*.yaml"))


def test_the_committed_schema_is_current(request: pytest.FixtureRequest) -> None:
    file = ROOT / SCHEMA
    if request.config.getoption("--fix"):
        write_schema(file)
    assert file.read_text(encoding="utf-8") == schema_text(), "run `ltpipe schema --write` or pytest with --fix"


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiments_fit_the_schema(file: Path) -> None:
    jsonschema.Draft202012Validator(experiment_schema()).validate(read_yaml(file).values)


@pytest.mark.parametrize(
    "mistake",
    [
        {"modell": {}},
        {"base": {"sampler": {"type": "randm"}}},
        {"base": {"sampler": {"type": "random", "threshold": 3}}},
        {"calibrate": {"a": {"type": "simcal", "schedule": {"lrr": 1}}}},
        {"lst": {"freeze": "everything"}},
    ],
    ids=json.dumps,
)
def test_mistakes_do_not_fit(mistake: dict[str, object]) -> None:
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not jsonschema.Draft202012Validator(schema).is_valid(mistake)
