"""Opening annotations of LVIS v1's size and converting them to the store, beside ``lvis.LVIS(json)``.

Run from the repository's root; missing inputs are drawn first (a few minutes, 2 GB of disk):

    python benchmarks/annotations.py [--inputs data/benchmarks/lvis_v1] [--dataset lvis_v1] [--share 1]

The other side of V3Det is ``pycocotools.coco.COCO(json)``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from large_inputs import SOURCES, make_inputs
from measuring import Row, apart, result_file, write_result

from ltpipe.data.phase import PhaseView
from ltpipe.data.split import make_split
from ltpipe.data.statistics import class_statistics
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store

Sample = dict[str, Any]


def convert(json_path: Path, folder: Path, fmt: str) -> None:
    """Build the store."""
    build_store(json_path, folder, fmt="lvis" if fmt == "lvis" else "coco")


def open_store(folder: Path) -> Sample:
    """Open the store and read the annotations of the first image that has any."""
    return first_sample(AnnotationStore.open(folder))


def first_sample(store: AnnotationStore) -> Sample:
    """Return the first annotated image with what a dataset needs of it."""
    row = int(store.ann_image[0])
    objects = range(store.image_ptr[row], store.image_ptr[row + 1])
    return {
        "file": store.image_file(row),
        "size": store.image_sizes[row].tolist(),
        "boxes": [store.ann_bbox[a].tolist() for a in objects],
        "categories": [int(store.category_ids[store.ann_category[a]]) for a in objects],
        "masks": [store.segmentation(a) for a in objects],
    }


def open_phase(folder: Path) -> int:
    """Open the store and select images and annotations of a one-shot experiment; what every rank does once."""
    store = AnnotationStore.open(folder)
    table = class_statistics(store)
    view = PhaseView(store, make_split(table["category_id"].to_numpy(), table["instance_count"].to_numpy()), 0)
    return len(view.annotations_of(0)[0])


def open_json(json_path: Path, federated: bool) -> Sample:
    """Do the same as :func:`open_store` with the common loaders, which every worker copies."""
    if federated:
        from lvis import LVIS

        data = LVIS(str(json_path))
        annotations, image_of = data.dataset["annotations"], data.load_imgs
        of_image, load = data.get_ann_ids, data.load_anns
    else:
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO(str(json_path))
        annotations, image_of, of_image, load = (
            data.dataset["annotations"],
            data.loadImgs,
            data.getAnnIds,
            data.loadAnns,
        )
    first = min(annotation["image_id"] for annotation in annotations)
    image, objects = image_of([first])[0], load(of_image([first]))
    return {
        "file": "/".join(image["coco_url"].split("/")[-2:]) if "coco_url" in image else image["file_name"],
        "size": [image["height"], image["width"]],
        "boxes": [item["bbox"] for item in objects],
        "categories": [item["category_id"] for item in objects],
        "masks": [item["segmentation"] for item in objects],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write ``benchmarks/results/annotations.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path)
    parser.add_argument("--dataset", choices=SOURCES, default="lvis_v1")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--output", type=result_file, default=Path("benchmarks/results/annotations.json"))
    options = parser.parse_args(arguments)
    inputs = options.inputs or Path("data/benchmarks") / options.dataset
    make_inputs(inputs, options.dataset, options.share, parts=["train"])
    federated = SOURCES[options.dataset].federated
    source = inputs / "train.json"
    with tempfile.TemporaryDirectory(dir=inputs) as name:
        folder = Path(name) / "train"
        _, converting = apart(convert, source, folder, "lvis" if federated else "coco")
        sample, opening = apart(open_store, folder)
        _, choosing = apart(open_phase, folder)
    expected, loading = apart(open_json, source, federated)
    same = {key: sample[key] == expected[key] for key in ("size", "boxes", "categories", "masks")}
    assert all(same.values()), f"the two sides read different samples: {same}"
    memory = loading.added_mib / opening.added_mib
    name, loader = ("LVIS v1", "`lvis.LVIS`") if federated else ("V3Det", "`pycocotools` `COCO`")
    rows = [
        Row(
            f"open {name} training annotations, first sample, per worker",
            f"{1000 * opening.seconds:.0f} ms, {opening.added_mib:.0f} MiB",
            f"{loader}: {loading.seconds:.3g} s, {loading.added_mib:.0f} MiB",
            loading.seconds / opening.seconds,
            "0.2 s, 1/20 of the memory",
            opening.seconds < 0.2 and memory > 20,
            f"memory beyond Python and its libraries, 1/{memory:.0f}, of which workers share the mapped pages. A "
            f"training process also selects the images and objects of its phase, once: {choosing.seconds:.2g} s.",
        ),
        Row(
            f"convert {name} training annotations, {source.stat().st_size / 2**20:.0f} MiB, with all checks",
            converting.text(),
            f"{loader}: {loading.text()}",
            loading.seconds / converting.seconds,
            "30 s, 2.5 GiB",
            converting.seconds < 30 and converting.peak_mib < 2560,
            "memory grows with the number of images and objects, not with the length of their masks.",
        ),
    ]
    details = {"convert": converting, "open": opening, "open_phase": choosing, "load_json": loading}
    write_result(__file__, options.output, arguments, rows, details)


if __name__ == "__main__":
    main()
