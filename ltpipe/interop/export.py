"""``ltpipe export``: a checkpoint for mmdet 3.x, or detections in the format of COCO and LVIS servers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ltpipe.config.detector import has_masks
from ltpipe.config.experiment import Experiment
from ltpipe.config.external_checkpoints import external_checkpoints
from ltpipe.data.annotation_json import write_annotations
from ltpipe.data.categories import ONE_LIST, Categories, check_labels, labels_in
from ltpipe.data.split import Split
from ltpipe.data.store import AnnotationStore
from ltpipe.data.tables import read_csv
from ltpipe.engine.dataset_configs import known_classes
from ltpipe.engine.detector_facts import check_same_detector, facts_of
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.meta_device import without_weights
from ltpipe.engine.model_config import component_modules, set_limits
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import read_checkpoint, write_checkpoint
from ltpipe.errors import UserError
from ltpipe.interop.class_order import reorder_config
from ltpipe.interop.plain_mmdet import foreign_types, plain_detector, without_parts
from ltpipe.interop.write_detections import write_results
from ltpipe.methods.class_rows import reorder_classes
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import IMPORTS
from ltpipe.run.files import atomic_path, sha256_file
from ltpipe.run.input_checks import checked_input
from ltpipe.run.outputs import Output

ANNOTATIONS, MASKS = "val.json", "val_masks.json"
NAMES = ("model.pth", ANNOTATIONS, MASKS, "config.py")
BESIDE = "BESIDE"  # the folder of the config, until the config is text


def export_model(exp: Experiment, paths: Paths, checkpoint: str, folder: Path, *, plain: bool = False) -> str:
    """Write ``model.pth`` and ``config.py`` whose labels are in the order of the annotation file, as mmdet counts.

    The validation annotations of the classes that the checkpoint knows lie beside them, in the order of the labels:
    mmdet takes the label of a class from its place in the annotation file. So mmdet's test loop measures our numbers.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        checkpoint: Checkpoint id.
        folder: Folder to write into.
        plain: Refuse a detector that mmdet cannot run without ltpipe.

    Returns:
        What was written, one sentence.

    Raises:
        UserError: The checkpoint is not there, or is not plain; or the folder holds files of these names that ltpipe
            did not make.
    """
    maker, _ = paths.producer(checkpoint)
    read = {maker: paths.model(checkpoint), "split": paths.split, "index": paths.statistics("train")}
    for name, path in read.items():
        _there(path, exp, checkpoint)
        checked_input(exp, paths, "export", name, path)
    output = Output(folder, "export", inputs=_read(exp, paths, checkpoint), names=NAMES)
    content = read_checkpoint(paths.model(checkpoint))
    known, classes = _classes(paths, content["meta"], paths.model(checkpoint))
    order = labels_in(known, classes, where=paths.model(checkpoint), fix=ONE_LIST)
    fragment, config = model_of(exp, paths, Split.load(paths.split), checkpoint)
    check_same_detector(content["meta"], facts_of(fragment, config), paths.model(checkpoint))
    set_limits(config, exp.evaluate)
    model, state, needed = _for_mmdet(config, content["state_dict"], len(known.ids), order)
    if needed and plain:
        raise UserError(
            "mmdet alone cannot run this detector",
            where=f"--checkpoint {checkpoint}",
            got=", ".join(needed),
            fix="leave out --plain: the config then imports ltpipe, which must be installed beside mmdet",
        )
    meta = {
        **classes.meta(),
        "exported": {"experiment": exp.name, "checkpoint": checkpoint, "sha256": sha256_file(paths.model(checkpoint))},
    }
    val, groups = AnnotationStore.open(paths.store("val")), read_csv(paths.statistics("train"))
    frequency = dict(zip(groups["category_id"].tolist(), groups["frequency"], strict=True))
    evaluators = _evaluators(exp, config, model, val)
    modules = [*IMPORTS, *component_modules(exp, fragment)] if needed else []
    modules += ["ltpipe.engine.last_pixel_metrics"] if last_pixel(config) else []
    exported = {**_config(exp, fragment, model, classes, modules), "test_evaluator": evaluators}
    annotations = [ANNOTATIONS, MASKS] if isinstance(evaluators, list) else [ANNOTATIONS]
    with output.write({"experiment": exp.name, "checkpoint": checkpoint}) as made:
        write_checkpoint(made / "model.pth", state, meta)
        for name in annotations:
            write_annotations(made / name, val, classes, frequency, masked=name == MASKS)
        _write_config(made / "config.py", exported)
    needs = f"needs ltpipe for {', '.join(needed)}" if needed else "plain mmdet 3.x"
    files = f"config.py, model.pth and {' and '.join(annotations)}"
    without = int((~val.ann_has_mask).sum())
    left_out = f"; {without} objects without a mask are only in {ANNOTATIONS}" if len(annotations) > 1 else ""
    return f"{folder}: {files}, {len(classes.ids)} classes in the order of the annotations; {needs}{left_out}"


def _for_mmdet(
    config: ConfigDict, state: dict[str, Any], num_classes: int, order: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return model and weights with the classes in another order, plain where mmdet can run them so.

    The last value names the components of ltpipe that it needs otherwise.
    """
    ours, state = without_parts(config.to_dict(), state)
    state = reorder_classes(state, {"": without_weights(ConfigDict(ours))}, num_classes, order)
    ours = reorder_config(ours, order)
    model, plain_state = plain_detector(ours, state)
    needed = sorted(set(foreign_types(model)))
    return (ours, state, needed) if needed else (model, plain_state, needed)


def _read(exp: Experiment, paths: Paths, checkpoint: str) -> list[Path]:
    """Return what exports read or come from: no export takes its place."""
    own = [paths.model(checkpoint), paths.config(checkpoint), paths.predictions(checkpoint), paths.split]
    annotations = (source.annotations for source in exp.parts().values())
    return [*own, *annotations, *external_checkpoints(exp).values()]


def _classes(paths: Paths, meta: Mapping[str, Any], where: Path) -> tuple[Categories, Categories]:
    """Return the classes of a checkpoint in the order of its labels, and in that of the annotation file.

    Raises:
        UserError: The checkpoint, the split, the training and the validation annotations do not know the same classes.
    """
    split = Split.load(paths.split)
    known = known_classes(paths, split, len(meta.get("category_ids", ())))
    check_labels(meta, known, where)
    annotated = Categories.of_store(AnnotationStore.open(paths.store("train")), "the training annotations")
    classes = annotated.take((i for i in annotated.ids if i in set(known.ids)), "the checkpoint")
    measured = Categories.of_store(AnnotationStore.open(paths.store("val")), "the validation annotations")
    labels_in(measured, classes, where=paths.store("val"), fix=ONE_LIST, part=True)
    return known, classes


def export_detections(exp: Experiment, paths: Paths, checkpoint: str, file: Path, iou_type: str) -> str:
    """Write the detections of an evaluated checkpoint as JSON; return what was written.

    Args:
        exp: The experiment.
        paths: Its artefacts.
        checkpoint: Checkpoint id.
        file: File to write.
        iou_type: ``bbox`` or ``segm``: servers measure each by a file of its own.

    Raises:
        UserError: The checkpoint was not evaluated, or without masks; or the file is one that ltpipe did not export.
    """
    _there(paths.predictions(checkpoint), exp, checkpoint, stage="evaluate")
    checked_input(exp, paths, "export", "evaluate", paths.predictions(checkpoint))
    output = Output(file, "export", inputs=_read(exp, paths, checkpoint))
    found = Predictions.open(paths.predictions(checkpoint))
    if iou_type == "segm" and found.masks is None:
        raise UserError("the detections have no masks", where=paths.predictions(checkpoint), fix="--iou-type bbox")
    with output.write({"experiment": exp.name, "checkpoint": checkpoint, "iou_type": iou_type}) as temporary:
        write_results(found, temporary, boxes=iou_type == "bbox", masks=iou_type == "segm")
    return f"{file}: {len(found)} detections, {iou_type}"


def _config(
    exp: Experiment, fragment: ConfigDict, model: dict[str, Any], classes: Categories, modules: Sequence[str]
) -> dict[str, Any]:
    """Return an mmdet config for inference and for mmengine's test loop.

    ``CocoDataset`` reads LVIS as well: ``LVISV1Dataset`` measures all categories of its file, whatever the detector
    knows, and builds file names from ``coco_url``.
    """
    dataset = dict(
        type="CocoDataset",
        ann_file=f"{BESIDE}/{ANNOTATIONS}",
        data_prefix=dict(img=os.path.abspath(exp.dataset.val.images)),
        metainfo=dict(classes=tuple(classes.names), palette=None),
        pipeline=list(fragment.test_pipeline),
        test_mode=True,
    )
    return dict(
        default_scope="mmdet",
        **({"custom_imports": {"imports": modules, "allow_failed_imports": False}} if modules else {}),
        model=model,
        test_pipeline=list(fragment.test_pipeline),
        test_dataloader=dict(
            batch_size=1, num_workers=2, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset
        ),
        test_cfg=dict(type="TestLoop"),
        visualizer=dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer"),
    )


def _evaluators(exp: Experiment, config: ConfigDict, model: dict[str, Any], val: AnnotationStore) -> Any:
    """Return mmdet's evaluator of what the experiment measures: one, or one for boxes and one for masks.

    Evaluators of masks cannot read objects without one: where there are any, masks have a file of their own.
    """
    federated = exp.dataset.format == "lvis"
    kind = ("ltpipe.LastPixel" if last_pixel(config) else "") + ("LVISMetric" if federated else "CocoMetric")
    kinds, masks = set(exp.evaluate.iou_types), val.ann_has_mask
    metrics = ["bbox"] if "bbox" in kinds else []
    metrics += ["segm"] if has_masks(model) and kinds != {"bbox"} and masks.any() else []
    # mmdet reads AP of three caps, of which our number has the last one: 100 detections per image and class.
    caps = {} if federated else {"proposal_nums": (1, 10, 100)}

    def evaluator(metric: list[str], file: str) -> dict[str, Any]:
        return dict(type=kind, ann_file=f"{BESIDE}/{file}", metric=metric, **caps)

    if "segm" not in metrics or masks.all():
        return evaluator(metrics, ANNOTATIONS)
    return [evaluator([metric], MASKS if metric == "segm" else ANNOTATIONS) for metric in metrics]


def _write_config(path: Path, values: dict[str, Any]) -> None:
    """Write a config that finds the annotations in its own folder, wherever that is moved.

    mmengine replaces some words in double braces when it reads a config, also in class names; those are spelt so that
    it does not see them.
    """
    text = Config(values, format_python_code=False).pretty_text.replace("{{", "{\\x7b")
    with atomic_path(path) as temporary:
        temporary.write_text(text.replace(f"'{BESIDE}/", "'{{ fileDirname }}/"), encoding="utf-8")


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
