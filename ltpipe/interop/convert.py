"""Another repository's checkpoint to one that ``load_from``, ``base.checkpoint`` and calibrators take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltpipe import __version__
from ltpipe.checkpoints.tensor_checks import check_tensors
from ltpipe.data.categories import Categories, stored_names
from ltpipe.engine.training import write_checkpoint
from ltpipe.errors import UserError, unknown_name
from ltpipe.interop.bags import from_original_channels, layout_from_original
from ltpipe.interop.checkpoint_facts import Facts, StatedFacts, describe
from ltpipe.interop.labels import label_order, read_classes
from ltpipe.interop.layout import Layout, State, apply_layout
from ltpipe.interop.maskrcnn_benchmark import BENCHMARK, LST
from ltpipe.interop.mmdet1 import CALIBRATED, MMDET1, convert_calibrated_head
from ltpipe.interop.mmdet2 import MMDET2, choices_from_config, with_folded_scale, with_part_state
from ltpipe.interop.pretrained import (
    CAFFE2,
    DETECTRON2,
    DETECTRON2_BACKBONE,
    TORCHVISION,
    TORCHVISION_BACKBONE,
    with_affine_statistics,
)
from ltpipe.interop.safe_reading import ForeignFile, read_content, read_foreign
from ltpipe.methods.bags.functions import GroupLayout, group_layout
from ltpipe.methods.class_rows import reorder_layers
from ltpipe.run.outputs import Output

# The first that fits counts.
LAYOUTS = (
    CALIBRATED,
    MMDET1,
    LST,
    BENCHMARK,
    TORCHVISION,
    DETECTRON2,
    DETECTRON2_BACKBONE,
    CAFFE2,
    MMDET2,
    TORCHVISION_BACKBONE,
)
CLASS_INDEX = "class_index"
_TRAINING_STATE = ("roi_head.parts.", "roi_head.calibrator.")


@dataclass(frozen=True)
class Request:
    """What ``ltpipe convert`` is asked to do.

    Attributes:
        files: One checkpoint, or the calibrated heads of a cascade's stages in order.
        output: File to write.
        source: Name of the layout; None: from the keys.
        classes: Class list (JSON) or ``statistics.csv`` of the data set the detector was trained on.
        init: Leave out everything that belongs to classes.
        groups: ``label2binlabel.pt`` of a BAGS classifier.
        ignore_names: Take the classes in the order of the class list, whatever names the file stores.
        given: What else the user says.
    """

    files: tuple[Path, ...]
    output: Path
    source: str | None = None
    classes: Path | None = None
    init: bool = False
    groups: Path | None = None
    ignore_names: bool = False
    given: StatedFacts = field(default_factory=StatedFacts)


def convert(request: Request) -> dict[str, Any]:
    """Convert and write a checkpoint; return the facts stored with it.

    Raises:
        UserError: A file cannot be read, has an unknown layout, or the command leaves something open; or the output is
            an input, or a file that ltpipe did not make.
    """
    output = Output(request.output, "convert", inputs=[*request.files, request.classes, request.groups])
    files = [read_foreign(path) for path in request.files]
    layout = choose_layout(files[0], request.source, init=request.init)
    if len(files) > 1 and layout is not CALIBRATED:
        raise UserError("several files are read only for calibrated heads, one per stage", got=f"{layout.title}")
    record: dict[str, Any] = {
        "ltpipe": __version__,
        "sources": [{"file": file.path.name, "sha256": file.sha256} for file in files],
        "layout": layout.name,
        "geometry": layout.geometry,
        "known_from": {},
    }
    for file in files:
        _check(layout, file)
    classes: Categories | None
    if layout is CALIBRATED:
        state = _heads(files)
        classes, record["labels"] = _labels(layout, files[0], _classes(request), _outputs(state) - 1, request)
    elif request.init or _rows_of(layout, files[0].state, "classifier") is None:
        state, classes = _without_classes(layout, files[0]), None
    else:
        state, classes, record["labels"], facts = _detector(layout, files[0], request)
        record |= {"known_from": facts.known_from, "model": facts.model}
    if layout is CAFFE2:
        state = with_affine_statistics(state)
    record["dropped"] = sorted(key for key in files[0].state if layout.rename(key)[0] is None)
    meta = {"converted": record} | ({} if classes is None else classes.meta())
    with output.write() as temporary:
        write_checkpoint(temporary, state, meta)
    return meta


def _check(layout: Layout, file: ForeignFile) -> None:
    """Refuse what cannot be weights among the tensors that are kept."""
    names = {key: name for key in file.state if (name := layout.rename(key)[0]) is not None}
    check_tensors({key: file.state[key] for key in names}, file.path, names)


def choose_layout(file: ForeignFile, name: str | None, *, init: bool = False) -> Layout:
    """Return the layout of that name, or the first that the keys fit.

    Args:
        file: The checkpoint.
        name: What the user says; None: nothing.
        init: Whether only what has nothing to do with classes is kept, for which a converted file is no mistake.

    Raises:
        UserError: There is none.
    """
    names = {layout.name: layout for layout in LAYOUTS}
    if name is not None:
        if name not in names:
            raise unknown_name("source", name, [*names, CLASS_INDEX], where="--source")
        return names[name]
    if "converted" in file.meta and not init:
        raise UserError("the file is converted already", where=file.path)
    for layout in LAYOUTS:
        if layout.fits(file.state):
            return layout
    raise UserError(
        "a checkpoint of no known layout", where=file.path, got=", ".join(list(file.state)[:4]),
        allowed=[layout.title for layout in LAYOUTS],
    )  # fmt: skip


def _labels(
    layout: Layout, file: ForeignFile, classes: Sequence[Mapping[str, Any]], known: int, request: Request
) -> tuple[Categories, str]:
    return label_order(layout, file.meta, classes, known, request.classes, ignore_names=request.ignore_names)


def _detector(layout: Layout, file: ForeignFile, request: Request) -> tuple[State, Categories, str, Facts]:
    """Return the whole detector, the classes of its labels and where they are known from, and what it is."""
    classes = _classes(request)
    outputs = _outputs_of_detector(layout, file, request, classes)
    labels, source = _labels(layout, file, classes, outputs - 1, request)
    width = _rows_of(layout, file.state, "classifier")
    groups = None
    if width is not None and width - outputs > 1:
        groups = _groups(request, labels, classes, outputs - 1, width)
    if layout.background == "first" and groups is not None:
        state = apply_layout(layout, file.state, outputs=outputs, classifier=(width or 0, from_original_channels))
    else:
        state = apply_layout(layout, file.state, outputs=outputs)
    known = outputs - 1
    if layout.labels == "row":
        # Label of category i is i - 1: the rows of ids that the data set does not use are left out.
        state, known = reorder_layers(state, known, [i - 1 for i in labels.ids]), len(labels.ids)
    if layout is MMDET2:
        state = with_folded_scale(with_part_state(state))
    facts = describe(state, known, request.given, choices_from_config(file.meta), plain_heads=layout.plain_heads)
    if groups is not None:
        _add_groups(state, groups)
    return state, labels, source, facts


def _outputs_of_detector(
    layout: Layout, file: ForeignFile, request: Request, classes: Sequence[Mapping[str, Any]]
) -> int:
    """Return K + 1: from class-wise layers, or else from the class names in the file or the class list."""
    rows = {kind: _rows_of(layout, file.state, kind) for kind in ("regressor", "mask")}
    extra = 0 if layout.background == "first" else 1
    if (rows["regressor"] or 0) > 4:
        return (rows["regressor"] or 0) // 4 + extra
    if (rows["mask"] or 0) > 1:
        return (rows["mask"] or 0) + extra
    width = _rows_of(layout, file.state, "classifier")
    # LST's phases know a prefix of the class list, and its softmax has one row per class.
    if layout.labels in ("count", "row") and width is not None:
        return width
    names = None if request.ignore_names else stored_names(file.meta)
    return len(names or classes) + 1


def _rows_of(layout: Layout, state: Mapping[str, Tensor], kind: str) -> int | None:
    return next((len(value) for key, value in state.items() if layout.rename(key)[1] == kind), None)


def _classes(request: Request) -> list[dict[str, Any]]:
    if request.classes is None:
        raise UserError(
            "the file does not say whose classes its rows are", where=request.files[0],
            fix="give --classes with the class list of its training data (configs/classes/lvis_v1.json, or the "
            "statistics.csv of `ltpipe index`), or --init to keep only what has nothing to do with classes",
        )  # fmt: skip
    return read_classes(request.classes)


def _without_classes(layout: Layout, file: ForeignFile) -> State:
    """Return the tensors that any data set's detector can start from."""
    kept = {key: value for key, value in file.state.items() if layout.rename(key)[1] is None}
    state = apply_layout(layout, kept)
    start = {k: v for k, v in state.items() if not k.startswith(_TRAINING_STATE) and ".loss_cls." not in k}
    return {key: value for key, value in start.items() if not key.endswith(("fc_cls.scale", ".weight_scaler"))}


def _heads(files: Sequence[ForeignFile]) -> State:
    """Return calibrated heads under the calibrator's names; those of a cascade are numbered by stage."""
    state: State = {}
    for stage, file in enumerate(files):
        prefix = "roi_head.calibrator." + (f"{stage}." if len(files) > 1 else "")
        state |= convert_calibrated_head(file.state, prefix)
    return state


def _outputs(state: Mapping[str, Tensor]) -> int:
    return next(len(value) for key, value in state.items() if key.endswith("fc_cls.weight"))


def _groups(
    request: Request, labels: Categories, classes: Sequence[Mapping[str, Any]], known: int, width: int
) -> GroupLayout:
    """Return the groups of a classifier from BAGS' own table, or from the counts and the published limits."""
    if request.groups is not None:
        table = read_content(request.groups)
        if not isinstance(table, Tensor):
            raise UserError("not a group table", where=request.groups, got=type(table).__name__, allowed="a tensor")
        groups = layout_from_original(table.numpy())
    else:
        counts = {int(c["id"]): int(c["instance_count"]) for c in classes}
        groups = group_layout([counts[i] for i in labels.ids])
    if groups.num_channels != width or len(groups.group) != known + 1:
        raise UserError(
            "the groups do not fit the classifier", where=request.groups or request.classes,
            got=f"{groups.num_channels} outputs for {len(groups.group) - 1} classes",
            allowed=f"{width} outputs for {known} classes",
            fix="give --groups with the label2binlabel.pt of its training",
        )  # fmt: skip
    return groups


def _add_groups(state: State, groups: GroupLayout) -> None:
    """Add the group softmax's buffers beside every classifier."""
    for key in [key for key in state if key.endswith("fc_cls.weight") and ".bbox_head." in key]:
        prefix = key.removesuffix("fc_cls.weight")
        state[f"{prefix}loss_cls.label_map"] = torch.from_numpy(groups.label_map)
        state[f"{prefix}loss_cls.draws"] = torch.zeros((), dtype=torch.int64)
