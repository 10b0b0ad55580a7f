"""``validate``: check an experiment and its detector before any GPU job, and write down what it resolves to."""

from __future__ import annotations

import sys
from pathlib import Path

from ltpipe import __version__
from ltpipe.config.checks import check_experiment
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments
from ltpipe.config.settings import read_settings
from ltpipe.data.findings import Findings
from ltpipe.data.image_names import image_files
from ltpipe.data.images import check_sample, orientation_remarks
from ltpipe.data.readers.coco import read_images
from ltpipe.pipeline.digests import slice_digest, stage_slice
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import atomic_path, discard, sha256_file, write_json
from ltpipe.run.records import read_json
from ltpipe.run.stage_run import installed_versions, stage_run
from ltpipe.stages.validate_summary import summary
from ltpipe.yaml_files import dump_yaml

INSPECTED = Path(".ltpipe") / "detectors"


def run(exp: Experiment, paths: Paths) -> None:
    """Check the experiment and write ``experiment.lock.yaml``: the same experiment without parents and defaults."""
    with stage_run("validate", exp, paths) as stage:
        for leftover in paths.root.glob(f".{paths.lock.name}.*"):
            discard(leftover)
        read_settings()
        remarks = check_experiment(exp, list_experiments())
        facts = _inspected(exp)
        images: dict[str, int] = {}
        stage.notes["images"] = sampled = sample_images(exp, images)
        remarks += [f"dataset.{part}: {text}" for part, found in sampled.items() for text in orientation_remarks(found)]
        text = dump_yaml(exp.model_dump(mode="json"))
        with atomic_path(paths.lock) as temporary:
            temporary.write_text(f"# {exp.file}, resolved by ltpipe {__version__}\n{text}", encoding="utf-8")
        stage.notes.update(lock_sha256=sha256_file(paths.lock), remarks=remarks, detector=facts)
    shared = {f"{stage} {key or ''}".strip(): owner for (stage, key), owner in exp.owners.items()}
    if exp.share is not None:
        print(f"{exp.name}: taken from {exp.share}: {', '.join(shared) or 'nothing, it begins otherwise'}")
    for fact in [*summary(exp, paths, images), *facts]:
        print(f"{exp.name}: {fact}")
    for remark in remarks:
        print(f"{exp.name}: {remark}", file=sys.stderr)
    print(f"{exp.name}: valid; checkpoints: {', '.join(exp.checkpoints())}")


def _inspected(exp: Experiment) -> list[str]:
    """Build the detector, or remember what was found when the same one was built with the same packages."""
    slices = {stage: stage_slice(exp, stage) for stage in ("base", "split")}
    if exp.detector.load_from is not None or exp.base.checkpoint is not None:
        return _inspect(exp)  # checkpoints change without the experiment
    kept = INSPECTED / f"{slice_digest({**slices, 'versions': installed_versions()})}.json"
    facts = (read_json(kept) or {}).get("facts")
    if not isinstance(facts, list):
        facts = _inspect(exp)
        write_json(kept, {"facts": facts})
    return facts


def _inspect(exp: Experiment) -> list[str]:
    from ltpipe.engine.inspection import inspect_detector  # seconds of imports
    from ltpipe.interop.finished_checkpoints import check_checkpoints

    found = inspect_detector(exp)
    check_checkpoints(exp, found.detector, found.num_classes)
    return list(found.facts)


def sample_images(exp: Experiment, counts: dict[str, int] | None = None) -> dict[str, dict[str, int]]:
    """Look for the image files of both parts, read some of them, and compare their sizes with the annotation files.

    Args:
        exp: The experiment.
        counts: Gets the number of images of each part.

    Returns:
        By part whose annotations are there: how many were read, and what became of their orientation.

    Raises:
        UserError: Image files are missing, or one that was read is damaged or of another size.
    """
    found = {}
    for part, source in exp.parts().items():
        if source.annotations.is_file():
            images = [image for image in read_images(source.annotations) if min(image.height, image.width) > 0]
            if counts is not None:
                counts[part] = len(images)
            name = [f"image id {image.id}" for image in images].__getitem__
            files = image_files(images, source.images, source.annotations, name, Findings())
            sizes = [(image.height, image.width) for image in images]
            found[part] = check_sample(source.images, files, sizes, [image.id for image in images], seed=exp.seed)
    return found
