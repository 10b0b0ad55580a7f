"""Any two methods that ``validate`` allows train, resume and predict; the others are refused with a reason."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch import nn

from ltpipe.config import catalogue
from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.engine import dataset_configs as inputs
from ltpipe.engine.inference import build_dataset
from ltpipe.engine.model_config import ClassCounts, assemble_model
from ltpipe.engine.roi_sampling import with_seeded_samplers
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import MODELS
from ltpipe.stages import index, split
from tests.helpers.method_project import tiny_experiment, write_project

SLOTS = ("classifier", "loss", "mask", "part", "sampler")
DEFAULT = {"classifier": "linear", "loss": "cross_entropy", "mask": "fcn", "part": "", "sampler": "random"}
OPTIONS: dict[str, dict[str, Any]] = {
    "combined": {"parts": [{"type": "repeat_factor", "weight": 1}, {"type": "class_aware", "weight": 2}]},
    "fasa": {"instance_prob_scale": 20.0, "adapt_split": "val"},
    "loce": {"memory": "roi", "warm_images": 0},
}
REFUSED = {
    ("weight_transfer", "crat"): "mask filters of all classes",
    ("group_softmax", "weight_transfer"): "row of each class",
    ("scaled_linear", "scaled_linear"): "trained detector to start from",
}
REFUSED |= {(loss, "loce"): "another loss" for loss in catalogue.names("loss") if loss != "cross_entropy"}
TOGETHER = [
    {"classifier": "normed_linear", "loss": "iif", "mask": "normed", "part": "fasa", "sampler": "repeat_factor"},
    {"classifier": "linear", "loss": "cross_entropy", "mask": "fcn", "part": "fasa+crat+loce", "sampler": "random"},
    {"classifier": "normed_linear", "loss": "seesaw", "mask": "normed", "part": "fasa+crat", "sampler": "combined"},
    {"classifier": "cosine", "loss": "eqlv2", "mask": "weight_transfer", "part": "fasa", "sampler": "class_aware"},
]


def refused(values: Collection[str]) -> str | None:
    """Return the reason why some of the methods cannot go together."""
    return next((reason for pair, reason in REFUSED.items() if set(pair) <= set(values)), None)


def covering() -> Iterator[dict[str, str]]:
    """Yield cases in which every allowed pair of methods of two slots meets at least once, as few as greed finds."""
    names = {slot: [*catalogue.names(slot), *([""] if slot == "part" else [])] for slot in SLOTS}
    missing = {
        pair: None
        for first, second in combinations(SLOTS, 2)
        for pair in product(((first, a) for a in names[first]), ((second, b) for b in names[second]))
        if not refused([name for _, name in pair])
    }

    def gain(case: dict[str, str], slot: str, name: str) -> int:
        order = [(kind, name if kind == slot else case[kind]) for kind in SLOTS if kind == slot or kind in case]
        return sum(pair in missing for pair in combinations(order, 2) if (slot, name) in pair)

    while missing:
        case = dict(next(iter(missing)))
        for slot in sorted(SLOTS, key=lambda kind: -len(names[kind])):
            if slot not in case:
                free = [name for name in names[slot] if not refused([*case.values(), name])]
                case[slot] = max(free, key=lambda name: gain(case, slot, name))
        for pair in combinations([(slot, case[slot]) for slot in SLOTS], 2):
            missing.pop(pair, None)
        yield {slot: case[slot] for slot in SLOTS}
    yield from TOGETHER


def label(case: dict[str, str]) -> str:
    return "-".join(case[slot] or "none" for slot in SLOTS)


def choice(name: str) -> dict[str, Any]:
    return {"type": name, **OPTIONS.get(name, {})}


def experiment(folder: Path, case: dict[str, str], **blocks: Any) -> Experiment:
    model = {slot: choice(case[slot]) for slot in ("classifier", "loss", "mask")}
    model["parts"] = [choice(name) for name in case["part"].split("+") if name]
    return tiny_experiment(folder, "pair", model=model, base={"sampler": choice(case["sampler"])}, **blocks)


class World(NamedTuple):
    """What all cases share."""

    folder: Path
    paths: Paths
    counts: ClassCounts
    image: dict[str, Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Indexed data, as working directory."""
    folder = tmp_path_factory.mktemp("pairs")
    write_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exp = experiment(folder, DEFAULT)
        paths = Paths("results", exp)
        index.run(exp, paths)
        split.run(exp, paths)
        counts = inputs.class_counts(paths, split.Split.load(paths.split), 9)
        fragment, _ = assemble_model(exp, counts)
        test = build_dataset(inputs.test_config(exp, paths, fragment.test_pipeline, 9))
        yield World(folder, paths, counts, test[0])


def build(exp: Experiment, counts: ClassCounts) -> tuple[nn.Module, torch.optim.Optimizer]:
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(with_seeded_samplers(assemble_model(exp, counts)[1]))
    model.init_weights()
    for part in model.roi_head.parts:
        part.epoch = 1  # FASA draws from the second epoch on
    return model.train(), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(step)
    losses = model(**model.data_preprocessor(copy.deepcopy(batch), True), mode="loss")
    total, logged = model.parse_losses(losses)
    assert torch.isfinite(total), logged
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return logged


@pytest.mark.parametrize("pair", REFUSED, ids="-".join)
def test_refused_pair(world: World, pair: tuple[str, str]) -> None:
    case = dict(DEFAULT) | {slot: name for slot in SLOTS for name in pair if name in catalogue.names(slot)}
    with pytest.raises(UserError, match=REFUSED[pair]):
        check_settings(experiment(world.folder, case))


@pytest.mark.parametrize("case", list(covering()), ids=label)
def test_together(world: World, case: dict[str, str]) -> None:
    exp = experiment(world.folder, case)
    check_settings(exp)
    order = {"sampler": {"type": exp.base.sampler.type, **exp.base.sampler.options}}
    fragment, _ = assemble_model(exp, world.counts)
    stream = build_dataset(
        inputs.stream_config(exp, world.paths, fragment, phase=0, num_classes=9, seed=0, order=order)
    )
    batches = [pseudo_collate([stream[i]]) for i in range(2)]
    model, optimizer = build(exp, world.counts)
    train_step(model, optimizer, batches[0], 0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    logged = train_step(model, optimizer, batches[1], 1)
    expected = {"fasa": "loss_fasa", "crat": "loss_bbox_trans"}
    assert all(name in logged for part, name in expected.items() if part in case["part"].split("+"))

    resumed, other = build(exp, world.counts)
    resumed.load_state_dict(saved[0], strict=True)
    other.load_state_dict(saved[1])
    train_step(resumed, other, batches[1], 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key

    with torch.no_grad():
        (found,) = model.eval().test_step(pseudo_collate([world.image]))
    found = found.pred_instances
    # Scores exp(-exp(-z)) may all be 0, and such detections are left out.
    assert len(found) or case["loss"] in ("gol", "gumbel")
    assert ((found.labels >= 0) & (found.labels < 9)).all() and found.masks.shape[0] == len(found)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()


def refusal(world: World, blocks: dict[str, Any], **case: str) -> str:
    with pytest.raises(UserError) as caught:
        check_settings(experiment(world.folder, {**DEFAULT, **case}, **blocks))
    return str(caught.value)


def test_refusals_name_their_reason(world: World) -> None:
    agnostic = {"detector": {"config": "class_agnostic.py"}}
    assert "reg_class_agnostic=True" in refusal(world, agnostic, part="crat")
    assert "named twice" in refusal(world, {}, part="fasa+fasa")
    phases = {"split": {"boundaries": [6, 9]}, "lst": {"distill": {"teacher": "none"}}}
    assert "groups" in refusal(world, phases, loss="group_softmax")
    posthoc = {"calibrate": {"posthoc": {"type": "iif"}}}
    assert "softmax cross entropy" in refusal(world, posthoc, loss="iif")
    assert "softmax cross entropy" in refusal(world, posthoc, loss="seesaw")
    shared = {"model": {"parts": [{"type": "loce"}]}}
    for blocks in (shared, {**shared, **phases}):
        with pytest.raises(UserError, match="layers that change"):
            check_settings(tiny_experiment(world.folder, "shared", **blocks))
    bags = {"calibrate": {"bags": {"type": "bags"}}}
    assert "row of each class" in refusal(world, bags, mask="weight_transfer")


def test_heads_without_call_points_are_refused(world: World) -> None:
    exp = experiment(world.folder, {**DEFAULT, "part": "crat"})
    text = Path("class_wise.py").read_text()
    text = text.replace("bbox_head=dict(", 'bbox_head=dict(type="SABLHead", ')
    Path("other_head.py").write_text(text)
    changed = exp.model_copy(update={"detector": exp.detector.model_copy(update={"config": Path("other_head.py")})})
    with pytest.raises(UserError, match="SABLHead"):
        assemble_model(changed, world.counts)
