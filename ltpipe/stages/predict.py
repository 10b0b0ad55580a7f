"""``ltpipe predict``: what a checkpoint, or an exported detector, finds in any images and videos."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import msgspec
import numpy as np
from mmengine.config import ConfigDict
from numpy.typing import NDArray

from ltpipe.config.detector import read_mmengine_config
from ltpipe.config.loading import load_experiment
from ltpipe.data.categories import Categories
from ltpipe.data.image_sources import Broken, Sources, find_sources
from ltpipe.data.progress_bar import Progress
from ltpipe.data.split import Split
from ltpipe.engine.detector_facts import check_same_detector, facts_of
from ltpipe.engine.geometry import last_pixel
from ltpipe.engine.inference import load_model
from ltpipe.engine.model_config import set_limits
from ltpipe.engine.predicting import Found, prediction_pipeline, predictions
from ltpipe.engine.stage_models import model_of
from ltpipe.engine.training import read_checkpoint
from ltpipe.errors import UserError, unknown_name
from ltpipe.pipeline.paths import Paths
from ltpipe.registry import import_plugins
from ltpipe.report.drawing import Marks, bitmap, crop, draw, jpeg
from ltpipe.run.files import write_json
from ltpipe.run.input_checks import checked_input
from ltpipe.run.outputs import Output
from ltpipe.run.records import RECORD

DETECTIONS, IMAGES = "detections.json", "images.json"
SCORE = 0.3
BROKEN_SHOWN = 20


@dataclass(frozen=True)
class Detector:
    """What is needed to detect.

    Attributes:
        name: Of the default output folder.
        model: Its model config.
        test_pipeline: Transforms at test time.
        weights: Its checkpoint.
        classes: What it knows, in label order.
    """

    name: str
    model: ConfigDict
    test_pipeline: Sequence[dict[str, Any]]
    weights: Path
    classes: Categories


def find_detector(named: str, checkpoint: str | None, results: Path) -> Detector:
    """Return a checkpoint of an experiment, or the detector in a folder of ``ltpipe export``.

    Args:
        named: Experiment, or folder with ``config.py``, which is Python and runs, and ``model.pth``.
        checkpoint: Checkpoint of the experiment.
        results: Folder of results.

    Raises:
        UserError: There is no such detector, or its checkpoint does not say which classes it knows.
    """
    if Path(named).is_dir():
        if checkpoint is not None:
            raise UserError("an exported detector is one checkpoint", where="--checkpoint", got=checkpoint)
        return _exported(Path(named))
    exp = load_experiment(named)
    if checkpoint not in exp.checkpoints():
        raise unknown_name("checkpoint", str(checkpoint), exp.checkpoints(), where="--checkpoint")
    paths = Paths(results, exp)
    weights, maker = paths.model(checkpoint), paths.producer(checkpoint)[0]
    for label, file in ((maker, weights), ("split", paths.split), ("index", paths.statistics("train"))):
        if not file.is_file():
            fix = f"run the stages up to {checkpoint} of {exp.name} first"
            raise UserError("no checkpoint yet", where=file, got="no such file", fix=fix)
        checked_input(exp, paths, "predict", label, file)
    meta = read_checkpoint(weights)["meta"]
    fragment, model = model_of(exp, paths, Split.load(paths.split), checkpoint)
    check_same_detector(meta, facts_of(fragment, model), weights)
    set_limits(model, exp.evaluate)
    return Detector(f"{exp.name}.{checkpoint}", model, fragment.test_pipeline, weights, _classes(meta, weights))


def _exported(folder: Path) -> Detector:
    """Return the detector in a folder of ``ltpipe export``; like any detector file, its config is trusted and run."""
    file, weights = folder / "config.py", folder / "model.pth"
    if (folder / RECORD).is_file():
        raise UserError(
            "results of a stage, whose config.py is not read: it is Python",
            where=folder,
            fix="name the experiment and --checkpoint, or a folder that `ltpipe export` wrote",
        )
    for one in (file, weights):
        if not one.is_file():
            raise UserError("not the folder of an exported detector", where=one, got="no such file")
    config = ConfigDict(read_mmengine_config(file, "the exported detector"))
    import_plugins(config.get("custom_imports", {}).get("imports", ()))
    classes = _classes(read_checkpoint(weights)["meta"], weights)
    return Detector(folder.resolve().name, config.model, config.test_pipeline, weights, classes)


def _classes(meta: Mapping[str, Any], weights: Path) -> Categories:
    found = Categories.of_checkpoint(meta, "the checkpoint")
    if found is None:
        raise UserError(
            "the checkpoint does not say which classes it knows", where=weights, got="no category ids in meta",
            fix="bring it in by `ltpipe convert`, or export it again",
        )  # fmt: skip
    return found


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


@dataclass(frozen=True)
class Wanted:
    """What is written beside the detections.

    Attributes:
        pictures: Drawn pictures.
        crops: A picture of every detected object.
    """

    pictures: bool = True
    crops: bool = False


class Writer:
    """Writes the detections of one picture after the other.

    Args:
        folder: Where to.
        stream: The file of detections, open.
        classes: What the detector knows.
        least: ``(K,)`` least scores.
        longer: Pixels to add to the sides of boxes, see :func:`~ltpipe.engine.geometry.last_pixel`.
        wanted: What else.

    Attributes:
        images: Records of the pictures, in COCO's format.
        count: Detections written.
    """

    def __init__(
        self,
        folder: Path,
        stream: BinaryIO,
        classes: Categories,
        least: NDArray[np.float64],
        longer: int,
        wanted: Wanted,
    ) -> None:
        self.images: list[dict[str, Any]] = []
        self.count = 0
        self._folder, self._stream, self._classes, self._least = folder, stream, classes, least
        self._longer, self._wanted, self._encoder = longer, wanted, msgspec.json.Encoder()

    def add(self, found: Found) -> None:
        """Write what was found in a picture."""
        picture, detections, pixels = found
        height, width = detections["size"]
        record = {"id": len(self.images) + 1, "file_name": picture.name, "width": int(width), "height": int(height)}
        if picture.frame is not None:
            record |= {"video": picture.name.rpartition("/")[0], "frame": picture.frame}
        self.images.append(record)
        keep = np.flatnonzero(detections["scores"] >= self._least[detections["labels"]])
        for row in keep.tolist():
            text = self._encoder.encode(self._record(record, detections, row))
            self._stream.write((b",\n" if self.count else b"") + text)
            self.count += 1
        if self._wanted.pictures or self._wanted.crops:
            self._draw(picture.name, detections, keep, pixels)

    def _record(self, image: Mapping[str, Any], found: Mapping[str, Any], row: int) -> dict[str, Any]:
        x0, y0, x1, y1 = found["bboxes"][row].astype(float).tolist()
        label = int(found["labels"][row])
        record = {
            "image_id": image["id"],
            "file_name": image["file_name"],
            "category_id": self._classes.ids[label],
            "category": self._classes.names[label],
            "bbox": [x0, y0, x1 - x0 + self._longer, y1 - y0 + self._longer],
            "score": float(found["scores"][row]),
        }
        if found["masks"] is not None:
            mask = found["masks"][row]
            size = [int(side) for side in mask["size"]]
            record["segmentation"] = {"size": size, "counts": mask["counts"].decode("ascii")}
        return record

    def _draw(self, name: str, found: Mapping[str, Any], keep: NDArray[np.int64], pixels: Any) -> None:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 or pixels.shape[2] == 1 else pixels
        keep = keep[np.argsort(found["scores"][keep], kind="stable")]  # the best lie above
        labels, scores = found["labels"][keep].tolist(), found["scores"][keep].tolist()
        if self._wanted.pictures:
            masks = None if found["masks"] is None else [bitmap(found["masks"][row], *pixels.shape[:2]) for row in keep]
            names = [self._classes.names[label] for label in labels]
            texts = [f"{text} {score:.2f}" for text, score in zip(names, scores, strict=True)]
            drawn = draw(pixels, Marks(found["bboxes"][keep], texts, labels, masks))
            _write(self._folder / "pictures" / Path(name).with_suffix(".jpg"), name, drawn)
        if self._wanted.crops:
            for place, (row, label) in enumerate(zip(keep[::-1], labels[::-1], strict=True), 1):
                # Ids tell classes apart whose names are alike as folders.
                safe = re.sub(r"[^-\w.]+", "_", self._classes.names[label])
                folder = f"{self._classes.ids[label]}_{safe}"
                file = f"{name.replace('/', '__')}_{place}.jpg"
                _write(self._folder / "crops" / folder / file, file, crop(pixels, found["bboxes"][row]))


def _write(file: Path, name: str, image: Any) -> None:
    """Write a picture; one whose name another has already (``a.png`` beside ``a.jpg``) keeps its own suffix in it."""
    if file.exists():
        file = file.with_name(f"{Path(name).name}.jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(image, 92))


def predict(
    detector: Detector,
    sources: Sources,
    output: Output,
    *,
    least: NDArray[np.float64],
    batch_size: int = 1,
    every: int = 1,
    wanted: Wanted | None = None,
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

    Returns:
        Pictures and detections, and what could not be read.
    """
    model = load_model(_with_scores(detector.model, float(least.min())), detector.weights)
    pipeline = prediction_pipeline(detector.test_pipeline)
    longer, broken = last_pixel(detector.model), []
    facts = {"detector": str(detector.weights), "classes": len(detector.classes.ids)}
    progress = Progress("predict", sources.count(every), unit="images")
    with output.write(facts) as folder:
        with open(folder / DETECTIONS, "wb") as stream:
            stream.write(b"[")
            writer = Writer(folder, stream, detector.classes, least, longer, wanted or Wanted())
            for item in predictions(model, pipeline, sources.pictures(every), batch_size):
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
    )
    print(f"{folder}: {count} detections in {pictures} images")
    if broken:
        raise UserError(
            f"{len(broken)} files or frames could not be read and are left out",
            where=sources.folder,
            got="\n           ".join(_told(broken)),
            fix="replace them; the detections in all others are written",
        )
