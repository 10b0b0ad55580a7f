"""Where every artefact lies. Stages and workflow take all paths from here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ltpipe.checkpoint_ids import phase_of
from ltpipe.config.experiment import Experiment

PARTS = ("train", "val")
"""Parts of the data set; experiments may name further test sets."""
RESULTS = "results"


def index_key(part: str) -> str | None:
    """Return the key of the stage ``index`` that makes the store of a part."""
    return None if part in PARTS else part


class Paths:
    """Paths of one experiment's artefacts below a results folder.

    Args:
        results: The results folder, ``results`` unless the user says otherwise.
        exp: The experiment.
    """

    LOCK = "experiment.lock.yaml"

    def __init__(self, results: str | Path, exp: Experiment) -> None:
        self.results = Path(results)
        self.root = self.results / exp.name
        self.dataset = self.results / "datasets" / exp.dataset.name
        self._experiment = exp

    # ---- folders and records of stages -------------------------------------------------------------------------------

    def folder(self, stage: str, key: str | int | None = None) -> Path:
        """Folder of a stage: of this experiment, or of the one that it shares the stage with.

        Args:
            stage: One of :data:`ltpipe.pipeline.stages.TABLE`. The results of ``index`` belong to the data set.
            key: Phase number, test set, calibrator name or measurement; None for a stage without keys.
        """
        if stage == "index":
            return self.dataset if key is None else self.dataset / "sets" / str(key)
        root = self.results / self._experiment.owners.get((stage, key), self.root.name)
        if isinstance(key, int):
            return root / stage / f"phase{key}"
        return root / stage if key is None else root / stage / key

    def record(self, stage: str, key: str | int | None = None) -> Path:
        """``stage.json`` of a stage, written last: its existence means complete."""
        return self.folder(stage, key) / "stage.json"

    def work(self, stage: str, key: str | int | None = None) -> Path:
        """Undeclared folder for the state from which a killed stage resumes."""
        return self.folder(stage, key) / "work"

    def log(self, stage: str, key: str | int | None = None) -> Path:
        """Log file of a stage, for runs by hand and by Snakemake alike."""
        if stage == "index":
            return Path("logs/datasets") / f"{self.dataset.name}{'' if key is None else f'.set.{key}'}.log"
        name = stage if key is None else f"{stage}.{f'phase{key}' if isinstance(key, int) else key}"
        return Path("logs") / self._experiment.owners.get((stage, key), self.root.name) / f"{name}.log"

    def benchmark(self, stage: str, key: str | int | None = None) -> Path:
        """What Snakemake measures of a stage: time, memory and load."""
        return self.log(stage, key).with_suffix(".benchmark.tsv")

    # ---- artefacts ---------------------------------------------------------------------------------------------------

    @property
    def lock(self) -> Path:
        """The resolved experiment: all defaults and parents merged in."""
        return self.root / self.LOCK

    @property
    def drawn(self) -> Path:
        """Note that the toy data of an experiment are drawn."""
        return self.dataset / "toy_data.json"

    def store(self, part: str) -> Path:
        """Folder of the columnar annotation store of ``train``, ``val`` or a further test set."""
        return self.dataset / part if index_key(part) is None else self.folder("index", part)

    def statistics(self, part: str = "train") -> Path:
        """Class statistics counted from the annotations, CSV."""
        return self.store(part) / "statistics.csv"

    @property
    def split(self) -> Path:
        """Class order and phase boundaries, JSON."""
        return self.folder("split") / "split.json"

    @property
    def holdout(self) -> Path:
        """Images held out of training; only for experiments with a method that asks for them."""
        return self.folder("split") / "holdout.npz"

    def replay(self, phase: int) -> Path:
        """Replay index of a phase."""
        return self.folder("split", phase) / "replay.npz"

    def teacher(self, phase: int) -> Path:
        """Cached teacher similarities of a phase."""
        return self.folder("distill", phase) / "teacher.npz"

    def producer(self, checkpoint: str) -> tuple[str, str | int | None]:
        """Stage and key that make a checkpoint: ``base``, ``phase<k>`` or a calibrator's name."""
        phase = phase_of(checkpoint)
        assert phase is not None or checkpoint in self._experiment.calibrate, checkpoint
        return ("calibrate", checkpoint) if phase is None else ("lst", phase) if phase else ("base", None)

    def model(self, checkpoint: str) -> Path:
        """Weights of a checkpoint."""
        return self.folder(*self.producer(checkpoint)) / "model.pth"

    def config(self, checkpoint: str) -> Path:
        """Complete mmengine config of a checkpoint."""
        return self.folder(*self.producer(checkpoint)) / "config.py"

    def curve(self, stage: str, key: str | int | None, name: Literal["training", "validation"]) -> Path:
        """What a training said of itself, CSV by iteration."""
        return self.folder(stage, key) / "history" / f"{name}.csv"

    def choice(self, calibrator: str) -> Path:
        """Numbers of every value of the options that were tried, CSV."""
        return self.folder("calibrate", calibrator) / "choice.csv"

    @property
    def plan(self) -> Path:
        """Calibration plan."""
        return self.folder("features") / "plan.npz"

    @property
    def features(self) -> Path:
        """Stored RoI features."""
        return self.folder("features") / "features.npy"

    def of_stage(self, file: Path, stage: int) -> Path:
        """The plan or the features for a stage of a cascade, beside those for the first one."""
        return file.with_stem(f"{file.stem}_stage{stage}") if stage else file

    def predictions(self, measurement: str) -> Path:
        """Detections of a measurement, ``base`` or ``base@minival``: of a checkpoint on one part, Arrow."""
        return self.folder("evaluate", measurement) / "predictions.arrow"

    def metrics(self, measurement: str) -> Path:
        """Summary metrics of a checkpoint, JSON."""
        return self.folder("evaluate", measurement) / "metrics.json"

    def per_class(self, measurement: str) -> Path:
        """Per-class metrics of a checkpoint, CSV."""
        return self.folder("evaluate", measurement) / "per_class.csv"

    def tensors(self, measurement: str) -> Path:
        """Precision and recall tensors of a checkpoint."""
        return self.folder("evaluate", measurement) / "tensors.npz"

    def unlimited(self, measurement: str) -> Path:
        """Detections of a checkpoint without a limit per image, Arrow; there only if asked for."""
        return self.folder("evaluate", measurement) / "predictions_per_class.arrow"

    def confusions(self, measurement: str) -> Path:
        """Which classes a checkpoint takes for which, CSV; not there if only boundaries are measured."""
        return self.folder("evaluate", measurement) / "confusions.csv"

    def resamples(self, measurement: str) -> Path:
        """Numbers of a checkpoint on resamples of the images; not there if only boundaries are measured."""
        return self.folder("evaluate", measurement) / "resamples.npz"

    def sweep(self, measurement: str) -> Path:
        """Metrics of a checkpoint with two classifiers by mode and threshold, CSV; there only if asked for."""
        return self.folder("evaluate", measurement) / "sweep.csv"

    def affinity(self, measurement: str) -> Path:
        """Neighbours of each class by a method that compares classes, CSV; the matrix lies beside it as ``.npz``."""
        return self.folder("evaluate", measurement) / "affinity.csv"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.folder("report") / "report.html"

    @property
    def pictures(self) -> Path:
        """The first page of pictures; it links to the others beside it."""
        return self.folder("pictures") / "index.html"

    @property
    def highlights(self) -> Path:
        """A dozen of the pictures, for the report."""
        return self.folder("pictures") / "highlights.json"

    @property
    def summary(self) -> Path:
        """The report's table, CSV."""
        return self.folder("report") / "summary.csv"

    @property
    def figures(self) -> Path:
        """Folder of the report's plots."""
        return self.folder("report") / "figures"
