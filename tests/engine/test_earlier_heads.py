"""RoI heads of an earlier version, whose call points lay in the RoI heads: same keys, losses, gradients, detections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.head_records import build, cases, outcome, unpacked

FILE = Path(__file__).parents[1] / "data" / "heads_4a6e01d.npz"


@pytest.fixture(scope="module")
def records() -> Iterator[Any]:
    with np.load(FILE) as file:
        yield file


@pytest.mark.parametrize("case", cases())
def test_a_stored_head_computes_what_it_did(records: Any, case: str) -> None:
    head = build(json.loads(str(records[f"{case}/config"])))
    state, expected = unpacked(records, f"{case}/state"), unpacked(records, f"{case}/outcome")
    assert list(head.state_dict()) == list(state), "names in checkpoints"
    head.load_state_dict(state, strict=True)
    found = outcome(head, unpacked(records, "given"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype == torch.bool:
            assert (found[key] != value).float().mean() < 1e-3, key
        else:
            torch.testing.assert_close(
                found[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
            )
