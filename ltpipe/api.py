"""Functions of ``import ltpipe`` about data, detections and plots; each imports what it needs when it is called.

Bad input raises :class:`~ltpipe.errors.UserError`: what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

    from ltpipe.data.split import Split
    from ltpipe.data.store import AnnotationStore
    from ltpipe.metrics.predictions import Predictions

PathLike = str | Path
ARROW = ".arrow"


# ---- data -----------------------------------------------------------------------------------------------------------


def open_store(
    source: PathLike, *, folder: PathLike | None = None, faults: Literal["refuse", "drop"] = "refuse"
) -> AnnotationStore:
    """Open annotations as memory-mapped columns.

    Args:
        source: COCO- or LVIS-format JSON, which is read and checked; or the folder of a store, of this function or of
            ``ltpipe index`` (``results/datasets/<name>/train``), which opens in milliseconds.
        folder: Where to keep the store of a JSON file; None: until Python lets go of it.
        faults: What becomes of records that cannot be used: ``refuse`` the file, or ``drop`` and count them.

    Returns:
        Numpy views: ``ann_bbox`` is ``(A, 4) float64`` xywh in absolute pixels, ``ann_category`` the row of the class.

    Raises:
        UserError: The file or the folder cannot be read, or has faults.
    """
    from ltpipe.data.formats import annotation_format
    from ltpipe.data.store import AnnotationStore
    from ltpipe.data.store_writer import build_store

    path = Path(source)
    if path.is_dir():
        return AnnotationStore.open(path)
    made = Path(tempfile.mkdtemp(prefix="ltpipe-")) if folder is None else Path(folder)
    try:
        build_store(path, made, fmt=annotation_format(path), faults=faults, progress=False)
        store = AnnotationStore.open(made)
    except BaseException:
        if folder is None:
            shutil.rmtree(made, ignore_errors=True)
        raise
    if folder is None:
        weakref.finalize(store, shutil.rmtree, made, ignore_errors=True)
    return store


def statistics(store: AnnotationStore, frequency_limits: Sequence[int] | None = None) -> pd.DataFrame:
    """Count images and instances of every class.

    Args:
        store: As of :func:`open_store`.
        frequency_limits: Most images of a rare and of a common class, e.g. ``[10, 100]``; None: the groups that the
            file names, else those of LVIS.

    Returns:
        A row per class in file order: ``category_id``, ``name``, ``image_count``, ``instance_count``, ``frequency``
        (``r``, ``c``, ``f``). Crowd regions and ignored objects do not count.
    """
    from ltpipe.data.statistics import class_statistics

    return class_statistics(store, frequency_limits)


def store_tables(store: AnnotationStore) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return images and annotations as tables.

    Args:
        store: As of :func:`open_store`.

    Returns:
        Images: ``image_id``, ``file``, ``height``, ``width`` in pixels. Annotations: ``annotation_id``, ``image_id``,
        ``category_id``, ``category``, ``x``, ``y``, ``w``, ``h`` (xywh, absolute pixels), ``area`` (square pixels),
        ``crowd``. Masks stay in the store.
    """
    import numpy as np
    import pandas as pd

    heights, widths = np.array(store.image_sizes).T
    files = [store.image_file(row) for row in range(len(store.image_ids))]
    images = pd.DataFrame({"image_id": np.array(store.image_ids), "file": files, "height": heights, "width": widths})
    boxes = dict(zip("xywh", np.array(store.ann_bbox).T, strict=True))
    annotations = {
        "annotation_id": np.array(store.ann_ids),
        "image_id": store.image_ids[store.ann_image],
        "category_id": store.category_ids[store.ann_category],
        "category": np.array(store.category_names, dtype=object)[store.ann_category],
        **boxes,
        "area": np.array(store.ann_area),
        "crowd": np.array(store.ann_iscrowd),
    }
    return images, pd.DataFrame(annotations)


def make_split(
    store: AnnotationStore,
    *,
    base_classes: int | None = None,
    step: int | None = None,
    boundaries: Sequence[int] | None = None,
) -> Split:
    """Sort the classes by training instances and cut them into a base and phases, as the stage ``split`` does.

    Args:
        store: The training annotations.
        base_classes: Classes of the base, with ``step``.
        step: Classes of each phase; the last one takes the remainder.
        boundaries: Classes known after base, phase 1, ...; instead of the two.

    Returns:
        ``order`` ``(K,) int64``, category ids by falling counts; ``boundaries``; ``new_labels(phase)``.

    Raises:
        UserError: A phase would be empty, or the boundaries do not end at the number of classes.
    """
    from ltpipe.data.split import make_split as split

    counts = statistics(store)
    ends = None if boundaries is None else list(boundaries)
    return split(counts["category_id"], counts["instance_count"], base_classes=base_classes, step=step, boundaries=ends)


# ---- detections -----------------------------------------------------------------------------------------------------


def read_predictions(path: PathLike, store: AnnotationStore | None = None) -> Predictions:
    """Read detections.

    Args:
        path: A results file as COCO and LVIS servers take them (JSON, plain or gzip), or ``predictions.arrow`` of the
            stage ``evaluate``, which is mapped and not read.
        store: The annotations they belong to: names are looked up there, and strange ids refused; needed for polygons.

    Returns:
        Columns ``image_ids``, ``category_ids``, ``scores`` ``(N,)``, ``boxes`` ``(N, 4)`` xywh in absolute pixels or
        None, ``masks`` or None.

    Raises:
        UserError: The file cannot be read, something in it is malformed or not finite, or an id is unknown.
    """
    from ltpipe.interop.known_ids import KnownIds
    from ltpipe.interop.read_detections import read_results
    from ltpipe.metrics.predictions import Predictions

    known = None if store is None else KnownIds(store, store.info["file"])
    if Path(path).suffix != ARROW:
        return read_results(path, known)
    found = Predictions.open(path)
    if known is not None:
        known.check(found)
    return found


def write_predictions(predictions: Predictions, path: PathLike) -> None:
    """Write detections, atomically, with a record beside them; a file that ltpipe did not write is never replaced.

    Args:
        predictions: As of :func:`read_predictions`.
        path: ``*.arrow`` for ltpipe's columns, anything else for a JSON list as COCO and LVIS servers take it.

    Raises:
        UserError: Something is not finite or malformed, or the file is somebody else's.
    """
    from ltpipe.interop.write_detections import write_results
    from ltpipe.metrics.predictions_writer import PredictionWriter
    from ltpipe.run.outputs import Output

    with Output(Path(path), "write_predictions").write() as temporary:
        if Path(path).suffix != ARROW:
            write_results(predictions.checked(), temporary)
            return
        boxes, masks = predictions.boxes is not None, predictions.masks is not None
        dtype: Literal["float32", "float64"] = "float32" if predictions.scores.dtype.itemsize == 4 else "float64"
        with PredictionWriter(temporary, boxes=boxes, masks=masks, dtype=dtype) as writer:
            writer.extend(predictions)


def detections_table(predictions: Predictions) -> pd.DataFrame:
    """Return detections as a table.

    Args:
        predictions: As of :func:`read_predictions`.

    Returns:
        ``image_id``, ``category_id``, ``score`` and, where there are boxes, ``x``, ``y``, ``w``, ``h`` (xywh, absolute
        pixels), in the order of the file.
    """
    import numpy as np
    import pandas as pd

    boxes = {} if predictions.boxes is None else dict(zip("xywh", np.array(predictions.boxes).T, strict=True))
    columns = {"image_id": predictions.image_ids, "category_id": predictions.category_ids}
    return pd.DataFrame({**columns, "score": predictions.scores, **boxes})


# ---- plots ----------------------------------------------------------------------------------------------------------


def plot_long_tail(classes: pd.DataFrame, path: PathLike, *, title: str = "Long tail") -> Path:
    """Draw the objects of every class, the most frequent first, coloured by frequency group.

    Args:
        classes: As of :func:`statistics`.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    from ltpipe.report.plot_classes import plot_long_tail as plot

    named = classes.rename(columns={"instance_count": "train_instances", "image_count": "train_images"})
    return plot(named, Path(path), title=title, counted="training instances")


def plot_class_curve(tables: Mapping[str, pd.DataFrame], path: PathLike, *, title: str = "AP by class") -> Path:
    """Draw AP against the rank of the class by training instances: a dot per class, a line for the running mean.

    Args:
        tables: By label, as of :func:`read_per_class`, of one IoU type each.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    from ltpipe.report.plots import plot_class_curve as plot

    return plot(tables, Path(path), title=title)


def plot_group_bars(
    numbers: Mapping[str, Mapping[str, float | None]], path: PathLike, *, title: str = "AP by frequency"
) -> Path:
    """Draw AP of all classes and of each frequency group as bars.

    Args:
        numbers: By label ``{"AP": ..., "APr": ..., "APc": ..., "APf": ...}``, e.g. ``scores["ours"]["bbox"]``.
        path: File without suffix; ``.png`` and ``.svg`` are written.
        title: Heading.

    Returns:
        The PNG file.
    """
    from ltpipe.report.plots import plot_group_bars as plot

    return plot(numbers, Path(path), title=title)
