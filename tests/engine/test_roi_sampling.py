"""RoI sampling seeded by image, and the launch of several processes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmdet.models.task_modules.assigners import AssignResult
from mmdet.registry import TASK_UTILS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.errors import PeerLost, UserError
from ltpipe.run.launch import FAILED, _exit_code, first_to_fail, processes_for
from ltpipe.run.stage_run import _clear_errors

PLAIN = {"type": "RandomSampler", "num": 12, "pos_fraction": 0.5, "add_gt_as_proposals": False}
PAIRED = {**PLAIN, "type": "ltpipe.ClassRestrictedSampler"}


def draws(sampler: Any, **metainfo: int) -> tuple[list[int], list[int]]:
    """Sample from 40 boxes, of which 20 show one of two objects."""
    objects = torch.tensor([1, 2] * 10 + [0] * 20)
    assigned = AssignResult(2, objects, torch.rand(40), labels=torch.where(objects > 0, objects + 2, -1))
    gt = InstanceData(bboxes=torch.rand(2, 4), labels=torch.tensor([3, 4]), metainfo=metainfo)
    found = sampler.sample(assigned, InstanceData(priors=torch.rand(40, 4)), gt)
    return found.pos_inds.tolist(), found.neg_inds.tolist()


def seeded(inner: dict[str, Any], salt: int = 0) -> Any:
    init_default_scope("mmdet")
    return TASK_UTILS.build({"type": "ltpipe.SeededSampler", "sampler": inner, "salt": salt})


@pytest.mark.parametrize("inner", [PLAIN, PAIRED])
def test_draws_depend_on_the_image_alone(inner: dict[str, Any]) -> None:
    extra = {"replay_label": 3} if inner is PAIRED else {}
    torch.manual_seed(0)
    first = draws(seeded(inner), sample_seed=5, **extra)
    torch.manual_seed(1)
    sampler = seeded(inner)
    again = draws(sampler, sample_seed=5, **extra)
    assert first == again and len(first[0]) == len(first[1]) == 6
    others = {str(draws(sampler, sample_seed=seed, **extra)) for seed in range(20)}
    assert len(others) > 15
    assert draws(seeded(inner, salt=1), sample_seed=5, **extra) != first


def test_the_generator_of_the_process_is_left_alone() -> None:
    sampler = seeded(PLAIN)
    torch.manual_seed(3)
    torch.rand(40), torch.rand(2, 4), torch.rand(40, 4)  # what `draws` itself takes
    expected = torch.rand(4)
    torch.manual_seed(3)
    draws(sampler, sample_seed=9)
    assert torch.equal(torch.rand(4), expected)


def test_without_a_seed_it_is_the_sampler_itself() -> None:
    init_default_scope("mmdet")
    torch.manual_seed(4)
    expected = draws(TASK_UTILS.build(dict(PLAIN)))
    torch.manual_seed(4)
    assert draws(seeded(PLAIN)) == expected


def test_every_random_sampler_of_a_config_is_wrapped() -> None:
    stages = [{"sampler": dict(PLAIN)}, {"sampler": dict(PAIRED)}, {"assigner": {}}]
    config = ConfigDict(train_cfg=dict(rpn={"sampler": dict(PLAIN)}, rcnn=stages))
    found = with_seeded_samplers(config).train_cfg
    assert [(s.sampler.type, s.sampler.salt, s.sampler.sampler.type) for s in (found.rpn, *found.rcnn[:2])] == [
        ("ltpipe.SeededSampler", 0, "RandomSampler"),
        ("ltpipe.SeededSampler", 1, "RandomSampler"),
        ("ltpipe.SeededSampler", 2, "ltpipe.ClassRestrictedSampler"),
    ]
    assert "sampler" not in found.rcnn[2] and config.train_cfg.rpn.sampler.type == "RandomSampler"


# ---- launches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "batch", "nodes", "processes"),
    [
        (0, 16, 1, 1),
        (1, 16, 1, 1),
        (3, 16, 1, 2),
        (4, 16, 1, 4),
        (8, 12, 1, 6),
        (8, 12, 2, 6),
        (8, 16, 4, 4),
        (8, 9, 2, 1),
    ],
)
def test_processes_share_a_batch(
    monkeypatch: pytest.MonkeyPatch, gpus: int, batch: int, nodes: int, processes: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes_for(batch, nodes) == processes


def test_one_process_of_a_launch_speaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert first_to_fail(1) and first_to_fail(1), "a process alone always does"
    monkeypatch.setenv(FAILED, str(tmp_path / "failed"))
    lost = PeerLost("another process of this training has ended")
    assert not first_to_fail(2, lost)
    assert [first_to_fail(code) for code in (75, 1, 1)] == [True, False, False]


def _failures(*codes: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(local_rank=rank, exitcode=code, timestamp=rank) for rank, code in enumerate(codes)]


def test_a_killed_process_is_named_whoever_ended_first(tmp_path: Path) -> None:
    """The others lose their connection, or are ended by torchrun with SIGTERM."""
    for codes, process in (((2, -9), 1), ((-15, -9, 2), 1), ((-15, 2), 0)):
        with pytest.raises(UserError, match=f"a process of this stage was killed\n *where: *process {process} of 3"):
            _exit_code(tmp_path / "failed", _failures(*codes), 3)
    assert _exit_code(tmp_path / "failed", _failures(2, 1), 2) == 2, "an end without a word, before it was under way"
    (tmp_path / "failed").write_text("75")
    assert _exit_code(tmp_path / "failed", _failures(-15, 75), 2) == 75
    (tmp_path / "failed").write_text("")
    assert _exit_code(tmp_path / "failed", _failures(-9, 2), 2) == 1


@pytest.mark.parametrize("text", ["[pair.cc:553] Connection closed by peer [127.0.0.1]:43", "Connection reset by peer"])
def test_a_lost_connection_is_one_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(PeerLost, match="another process of this training has ended"), _clear_errors(tmp_path):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shape"), _clear_errors(tmp_path):
        raise RuntimeError("shape mismatch")
