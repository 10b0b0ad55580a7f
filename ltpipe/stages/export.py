"""``ltpipe export``: a checkpoint for mmdet 3.x, or detections in the format of COCO and LVIS servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from ltpipe.convert.class_order import reorder_classes
from ltpipe.convert.plain import foreign_types, plain_detector
from ltpipe.data.tables import read_csv
from ltpipe.engine.config import read_config
from ltpipe.engine.train import read_checkpoint, write_checkpoint
from ltpipe.errors import UserError
from ltpipe.evaluation.predictions import Predictions
from ltpipe.evaluation.results_json import write_results
from ltpipe.files import atomic_path, sha256_file
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths


def export_model(exp: Experiment, paths: Paths, checkpoint: str, folder: Path, *, plain: bool = False) -> str:
    """Write ``model.pth`` and ``config.py`` whose labels are in the order of the annotation file, as mmdet counts.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        checkpoint: Checkpoint id.
        folder: Folder to write into.
        plain: Refuse a detector that mmdet cannot run without ltpipe.

    Returns:
        What was written, one sentence.

    Raises:
        UserError: The checkpoint is not there, or is not plain.
    """
    for path in (paths.model(checkpoint), paths.config(checkpoint), paths.split):
        _there(path, exp, checkpoint)
    config, content = read_config(paths.config(checkpoint)), read_checkpoint(paths.model(checkpoint))
    known = list(content["meta"]["category_ids"])
    table = read_csv(paths.statistics("train"))
    names = dict(zip(table["category_id"], table["name"], strict=True))
    ids = [int(category) for category in table["category_id"] if category in set(known)]
    model, state = plain_detector(config.model.to_dict(), content["state_dict"])
    needed = sorted(set(foreign_types(model)))
    if needed and plain:
        raise UserError(
            "mmdet alone cannot run this detector",
            where=f"--checkpoint {checkpoint}",
            got=", ".join(needed),
            fix="leave out --plain: the config then imports ltpipe, which must be installed beside mmdet",
        )
    if needed:
        model = _counts_in_order(config.model.to_dict(), [known.index(category) for category in ids])
        state = content["state_dict"]
    state = reorder_classes(state, len(known), [known.index(category) for category in ids])
    classes = tuple(str(names[category]) for category in ids)
    meta = {
        "category_ids": ids,
        "dataset_meta": {"classes": classes},
        "exported": {"experiment": exp.name, "checkpoint": checkpoint, "sha256": sha256_file(paths.model(checkpoint))},
    }
    write_checkpoint(folder / "model.pth", state, meta)
    written = Config(_config(exp, config, model, classes, bool(needed)), format_python_code=False)
    with atomic_path(folder / "config.py") as temporary:
        written.dump(str(temporary))
    needs = f"needs ltpipe for {', '.join(needed)}" if needed else "plain mmdet 3.x"
    return f"{folder}: config.py and model.pth, {len(ids)} classes in the order of the annotations; {needs}"


def export_detections(exp: Experiment, paths: Paths, checkpoint: str, file: Path, iou_type: str) -> str:
    """Write the detections of an evaluated checkpoint as JSON; return what was written.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        checkpoint: Checkpoint id.
        file: File to write.
        iou_type: ``bbox`` or ``segm``: servers measure each by a file of its own.

    Raises:
        UserError: The checkpoint was not evaluated, or without masks.
    """
    _there(paths.predictions(checkpoint), exp, checkpoint, stage="evaluate")
    found = Predictions.open(paths.predictions(checkpoint))
    if iou_type == "segm" and found.masks is None:
        raise UserError("the detections have no masks", where=paths.predictions(checkpoint), fix="--iou-type bbox")
    write_results(found, file, boxes=iou_type == "bbox", masks=iou_type == "segm")
    return f"{file}: {len(found)} detections, {iou_type}"


def _config(
    exp: Experiment, config: Config, model: dict[str, Any], classes: tuple[str, ...], needs_ltpipe: bool
) -> dict[str, Any]:
    """Return an mmdet config for inference and for `tools/test.py`."""
    federated, val = exp.dataset.format == "lvis", exp.dataset.val
    dataset = dict(
        type="LVISV1Dataset" if federated else "CocoDataset",
        ann_file=str(val.annotations),
        data_prefix=dict(img=str(val.images)),
        metainfo=dict(classes=classes),
        pipeline=list(config.test_pipeline),
        test_mode=True,
    )
    metrics = ["bbox", "segm"] if model["roi_head"].get("mask_head") else ["bbox"]
    return dict(
        default_scope="mmdet",
        **({"custom_imports": config.custom_imports} if needs_ltpipe else {}),
        model=model,
        test_pipeline=list(config.test_pipeline),
        test_dataloader=dict(
            batch_size=1, num_workers=2, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset
        ),
        test_evaluator=dict(
            type="LVISMetric" if federated else "CocoMetric", ann_file=str(val.annotations), metric=metrics
        ),
        test_cfg=dict(type="TestLoop"),
    )


def _counts_in_order(value: Any, order: list[int]) -> Any:
    """Return a config whose lists with a count per class are in the order of the exported labels."""
    if isinstance(value, list):
        return [_counts_in_order(inner, order) for inner in value]
    if not isinstance(value, dict):
        return value
    found = {key: _counts_in_order(inner, order) for key, inner in value.items()}
    per_class = [key for key, v in found.items() if key.endswith("_counts") and isinstance(v, list)]
    return found | {key: [found[key][place] for place in order] for key in per_class}


def _there(path: Path, exp: Experiment, checkpoint: str, stage: str | None = None) -> None:
    if not path.is_file():
        maker = stage or f"the stages up to {checkpoint}"
        raise UserError("nothing to export yet", where=path, got="no such file", fix=f"run {maker} of {exp.name} first")


def run(exp: Experiment, paths: Paths, arguments: Any) -> None:
    """Run ``ltpipe export`` with parsed arguments."""
    if arguments.detections is not None:
        print(export_detections(exp, paths, arguments.checkpoint, arguments.detections, arguments.iou_type))
    else:
        print(export_model(exp, paths, arguments.checkpoint, arguments.output, plain=arguments.plain))
