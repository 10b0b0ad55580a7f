"""``ltpipe predict``: what a checkpoint, or an exported detector, finds in any images and videos."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import ConfigDict
from numpy.typing import NDArray

from ltpipe.data.categories import Categories
from ltpipe.data.image_sources import Broken, Sources, find_sources
from ltpipe.data.progress_bar import Progress
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import load_model
from ltpipe.engine.precision import guard
from ltpipe.engine.predicting import prediction_pipeline, predictions
from ltpipe.errors import UserError, unknown_name
from ltpipe.run.files import write_json
from ltpipe.run.outputs import Output
from ltpipe.stages.prediction_files import Wanted, Writer
from ltpipe.stages.trained_detector import Detector, find_detector

DETECTIONS, IMAGES = "detections.json", "images.json"
SCORE = 0.3
BROKEN_SHOWN = 20
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def thresholds(given: Sequence[str], classes: Categories) -> NDArray[np.float64]:
    """Return the least score of every class, ``(K,)``.

    Args:
        given: ``0.3`` for all classes and ``NAME=0.5`` for single ones, later ones last.
        classes: What the detector knows.

    Raises:
        UserError: No number from 0 to 1, or a class that the detector does not know.
    """
    least = np.full(len(classes.ids), SCORE)
    # Those of single classes hold whatever the order.
    for item in sorted(given, key=lambda item: "=" in item):
        name, _, number = item.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise UserError("a score is a number from 0 to 1", where="--score", got=item, allowed="0.3, or NAME=0.5")
        if name and name not in classes.names:
            raise unknown_name("class", name, classes.names, where="--score", shown=20)
        least[[label for label, own in enumerate(classes.names) if not name or own == name]] = value
    return least


def predict(
    detector: Detector,
    sources: Sources,
    output: Output,
    *,
    least: NDArray[np.float64],
    batch_size: int = 1,
    every: int = 1,
    wanted: Wanted | None = None,
    precision: str = "fp32",
) -> tuple[int, int, list[tuple[str, Broken]]]:
    """Write what a detector finds.

    ``detections.json`` is a list in COCO's results format with ``file_name`` and ``category`` beside the ids;
    ``images.json`` holds the images and the categories that the ids mean.

    Args:
        detector: The detector.
        sources: Images and videos.
        output: Folder to write to.
        least: ``(K,)`` least score of every class.
        batch_size: Images per forward pass.
        every: Take every so-manieth frame of videos.
        wanted: What to write beside the detections.
        precision: What backbone, neck and heads compute in, of :data:`PRECISIONS`.

    Returns:
        Pictures and detections, and what could not be read.
    """
    model = load_model(_with_scores(detector.model, float(least.min())), detector.weights)
    if precision != "fp32":
        guard(model)
    pipeline = prediction_pipeline(detector.test_pipeline)
    longer, broken = last_pixel(detector.model), []
    facts = {"detector": str(detector.weights), "classes": len(detector.classes.ids)}
    progress = Progress("predict", sources.count(every), unit="images")
    with output.write(facts) as folder:
        with open(folder / DETECTIONS, "wb") as stream:
            stream.write(b"[")
            writer = Writer(folder, stream, detector.classes, least, longer, wanted or Wanted())
            for item in predictions(model, pipeline, sources.pictures(every), batch_size, PRECISIONS[precision]):
                if isinstance(item[1], Broken):
                    broken.append((str(item[0]), item[1]))
                else:
                    writer.add(item)
                progress.advance(1)
            stream.write(b"]\n")
        records = [{"id": i, "name": name} for i, name in detector.classes.pairs()]
        info = {"folder": str(sources.folder), "detector": detector.name}
        write_json(folder / IMAGES, {"info": info, "images": writer.images, "categories": records, "annotations": []})
    progress.close()
    return len(writer.images), writer.count, broken


def _with_scores(model: ConfigDict, least: float) -> ConfigDict:
    """Return the model that keeps nothing below a score, where it has a limit: less to draw masks for."""
    rcnn = model.test_cfg.get("rcnn")
    if rcnn is not None:
        rcnn.score_thr = max(rcnn.score_thr, least * (1 - 1e-6))  # a score that equals it stays
    return model


def _told(broken: Sequence[tuple[str, Broken]]) -> Iterator[str]:
    yield from (f"{name}: {error}" for name, error in broken[:BROKEN_SHOWN])
    if len(broken) > BROKEN_SHOWN:
        yield f"and {len(broken) - BROKEN_SHOWN} more"


def run(arguments: Namespace) -> None:
    """Run ``ltpipe predict`` with parsed arguments.

    Raises:
        UserError: Something given is wrong; or, after everything else is written, files that could not be read.
    """
    for name in ("batch_size", "every"):
        if getattr(arguments, name) < 1:
            raise UserError("not a number from 1", where=f"--{name.replace('_', '-')}", got=getattr(arguments, name))
    if arguments.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("float16 needs a GPU", where="--precision", got="fp16, and no GPU", allowed="bf16 or fp32")
    sources = find_sources(arguments.paths)
    detector = find_detector(arguments.detector, arguments.checkpoint, arguments.results)
    least = thresholds(arguments.score, detector.classes)
    folder = arguments.output or Path("predictions") / detector.name
    given = [Path(path) for path in arguments.paths if Path(path).exists()]
    output = Output(folder, "predict", inputs=[detector.weights, *given], names=(IMAGES, DETECTIONS))
    pictures, count, broken = predict(
        detector,
        sources,
        output,
        least=least,
        batch_size=arguments.batch_size,
        every=arguments.every,
        wanted=Wanted(not arguments.no_pictures, arguments.crops),
        precision=arguments.precision,
    )
    print(f"{folder}: {count} detections in {pictures} images")
    if broken:
        raise UserError(
            f"{len(broken)} files or frames could not be read and are left out",
            where=sources.folder,
            got="\n           ".join(_told(broken)),
            fix="replace them; the detections in all others are written",
        )
