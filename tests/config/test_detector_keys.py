"""What else a detector file may say: used, refused with what replaces it, or remarked on where mmdet brought it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltpipe.config.checks import check_settings
from ltpipe.config.detector import resolve_detector
from ltpipe.config.detector_keys import REPLACED
from ltpipe.errors import UserError
from tests.helpers.small_project import DETECTOR, Load

MASK_RCNN = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
RTMDET = "mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py"


def written(text: str, name: str = "ours.py") -> str:
    Path(name).write_text(text)
    return name


def refusal(source: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve_detector(source)
    return str(caught.value)


@pytest.mark.parametrize("name", REPLACED)
def test_every_key_that_is_not_used_is_refused_by_name(project: Path, name: str) -> None:
    text = refusal(written(f"{DETECTOR}{name} = dict(type='Something')\n"))
    assert f"ours.py:{DETECTOR.count(chr(10)) + 1}: {name} -> {REPLACED[name]}" in text


@pytest.mark.parametrize(
    "text",
    [
        f"_base_ = [{MASK_RCNN!r}]\noptim_wrapper = dict(optimizer=dict(lr=0.1))\n",
        "_base_ = './parent.py'\n",
        f"_base_ = {MASK_RCNN!r}\noptim_wrapper = _base_.optim_wrapper\noptim_wrapper.optimizer.lr = 0.1\n",
        f"_base_ = {MASK_RCNN!r}\nif True:\n    optim_wrapper = dict(optimizer=dict(lr=0.1))\n",
        "from mmengine.config import read_base\n\nwith read_base():\n    from .lazy import *\n",
    ],
)
def test_what_a_file_of_the_user_changes_is_refused(project: Path, text: str) -> None:
    written(f"_base_ = [{MASK_RCNN!r}]\noptim_wrapper = dict(optimizer=dict(lr=0.1))\n", "parent.py")
    written(DETECTOR + "optim_wrapper = dict(type='OptimWrapper')\n", "lazy.py")
    assert "optim_wrapper -> base.schedule" in refusal(written(text))


def test_everything_in_vain_is_told_at_once(project: Path) -> None:
    more = "param_scheduler = [dict(type='MultiStepLR')]\nvisualizer = dict(type='X')\nload_from = 'x.pth'\n"
    text = refusal(written(DETECTOR + more))
    assert all(f"{key} -> " in text for key in ("param_scheduler", "visualizer", "load_from"))


def test_empty_values_ask_for_nothing(project: Path) -> None:
    found = resolve_detector(written(DETECTOR + "load_from = None\nresume = False\ncustom_hooks = []\n"))
    assert found.values() == resolve_detector(written(DETECTOR)).values()


def test_hooks_and_environment_are_used_and_decide_the_digest(project: Path) -> None:
    text = (
        DETECTOR + "custom_hooks = [dict(type='ProfilerHook', by_epoch=False)]\nenv_cfg = dict(cudnn_benchmark=True)\n"
    )
    found = resolve_detector(written(text)).values()
    assert found["custom_hooks"] == [{"type": "ProfilerHook", "by_epoch": False}]
    assert found["env_cfg"] == {"cudnn_benchmark": True}


@pytest.mark.parametrize(
    ("hook", "instead"), [("EMAHook", "schedule.ema"), ("mmdet.PipelineSwitchHook", "trainings count iterations")]
)
def test_hooks_that_something_replaces(project: Path, hook: str, instead: str) -> None:
    assert instead in refusal(written(f"{DETECTOR}custom_hooks = [dict(type={hook!r})]\n"))


def test_what_mmdet_brings_is_remarked_on(load: Load, project: Path) -> None:
    found = resolve_detector(RTMDET)
    assert not found.hooks and found.environment is None
    words = " ".join(found.remarks)
    assert all(f"{key} is not used" in words for key in ("optim_wrapper", "EMAHook", "PipelineSwitchHook"))
    remarks = check_settings(load("detector: {config: detector.py}", f"detector: {{config: {MASK_RCNN!r}}}"))
    assert [remark.split(" ")[1] for remark in remarks] == ["optim_wrapper", "param_scheduler"]


def test_mmdets_own_bases_may_say_anything(project: Path) -> None:
    found = resolve_detector(written(f"_base_ = {MASK_RCNN!r}\nmodel = dict(backbone=dict(depth=18))\n"))
    assert found.backbone == "R-18" and found.environment is None and not found.hooks
