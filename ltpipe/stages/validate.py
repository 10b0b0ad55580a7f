"""``validate``: check an experiment in seconds, before any GPU job, and write down what it resolves to."""

from __future__ import annotations

import sys

import yaml

from ltpipe import __version__
from ltpipe.data.findings import Findings
from ltpipe.data.image_names import image_files
from ltpipe.data.images import check_sample, orientation_remarks
from ltpipe.data.readers.coco import read_images
from ltpipe.files import atomic_path, discard, sha256_file
from ltpipe.spec.checks import check_experiment
from ltpipe.spec.digest import stage_slice
from ltpipe.spec.load import list_experiments
from ltpipe.spec.models import Experiment
from ltpipe.spec.paths import Paths
from ltpipe.stages._run import stage_run


def run(exp: Experiment, paths: Paths) -> None:
    """Check the experiment and write ``experiment.lock.yaml``: the same experiment without parents and defaults."""
    with stage_run(
        "validate",
        paths.folder("validate"),
        experiment=exp.name,
        settings=stage_slice(exp, "validate"),
        seed=exp.seed,
        inputs={},
    ) as stage:
        for leftover in paths.root.glob(f".{paths.lock.name}.*"):
            discard(leftover)
        remarks = check_experiment(exp, list_experiments())
        stage.notes["images"] = sampled = sample_images(exp)
        remarks += [f"dataset.{part}: {text}" for part, found in sampled.items() for text in orientation_remarks(found)]
        text = yaml.safe_dump(exp.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
        with atomic_path(paths.lock) as temporary:
            temporary.write_text(f"# {exp.file}, resolved by ltpipe {__version__}\n{text}", encoding="utf-8")
        stage.notes.update(lock_sha256=sha256_file(paths.lock), remarks=remarks)
    shared = {f"{stage} {key or ''}".strip(): owner for (stage, key), owner in exp.owners.items()}
    if exp.share is not None:
        print(f"{exp.name}: taken from {exp.share}: {', '.join(shared) or 'nothing, it begins otherwise'}")
    for remark in remarks:
        print(f"{exp.name}: {remark}", file=sys.stderr)
    print(f"{exp.name}: valid; checkpoints: {', '.join(exp.checkpoints())}")


def sample_images(exp: Experiment) -> dict[str, dict[str, int]]:
    """Look for the image files of both parts, read some of them, and compare their sizes with the annotation files.

    Returns:
        By part whose annotations are there: how many were read, and what became of their orientation.

    Raises:
        UserError: Image files are missing, or one that was read is damaged or of another size.
    """
    found = {}
    for part, source in (("train", exp.dataset.train), ("val", exp.dataset.val)):
        if source.annotations.is_file():
            images = [image for image in read_images(source.annotations) if min(image.height, image.width) > 0]
            name = [f"image id {image.id}" for image in images].__getitem__
            files = image_files(images, source.images, source.annotations, name, Findings())
            sizes = [(image.height, image.width) for image in images]
            found[part] = check_sample(source.images, files, sizes, [image.id for image in images], seed=exp.seed)
    return found
