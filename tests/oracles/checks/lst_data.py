"""Oracle checks of "Learning to Segment the Tail": split, phase filtering, replay and support lists, batches."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.testing import assert_array_equal

from ltpipe.data.class_images import ClassImages
from ltpipe.data.phase import PhaseView
from ltpipe.data.published_indices import legacy_rows, rows_to_stream
from ltpipe.data.replay import ReplaySource, replay_counts
from ltpipe.data.split import Split, make_split
from tests.published.sampling import process_batches, support_schedule

METHOD = "lst"
CLASS_IMAGES = "lvis_v05_train_class_images.npz"
DEFAULT_FOLDER = Path(__file__).parents[1] / "data" / METHOD

Arrays = dict[str, Any]


def load(path: Path) -> Arrays:
    """Return all arrays of a file; 0-d ones as Python scalars."""
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key].item() if file[key].ndim == 0 else file[key] for key in file.files}


def check_split(path: Path) -> None:
    """Class order and phases."""
    data = load(path)
    split = make_split(data["cat_id"], data["instance_count"], base_classes=data["base_size"], step=data["step_size"])
    assert_array_equal(split.order, data["sorted_cat_id"])
    assert_array_equal(split.boundaries, data["prefix_len"])
    assert_array_equal(split.phase_of_label, data["phase_of_rank"])
    for phase, known in enumerate(data["prefix_len"]):
        assert split.classes_known(phase) == known


def table(data: Arrays) -> Any:
    """Return the input annotations in store order: by image row, file order inside an image."""
    image_ids = data["in_image_id"]
    by_id = np.argsort(image_ids)
    row = by_id[np.searchsorted(image_ids[by_id], data["in_ann_image"])]
    order = np.argsort(row, kind="stable")
    categories = {c: i for i, c in enumerate(data["in_cat_id"].tolist())}
    return SimpleNamespace(
        image_ids=image_ids,
        image_sizes=np.ones((len(image_ids), 2), dtype=np.int32),
        category_ids=data["in_cat_id"],
        ann_ids=data["in_ann_id"][order],
        ann_image=row[order].astype(np.int32),
        ann_category=np.array([categories[c] for c in data["in_ann_cat"][order].tolist()], dtype=np.int32),
        ann_bbox=data["in_ann_bbox"][order],
        ann_iscrowd=np.zeros(len(row), dtype=np.bool_),
        ann_ignore=np.zeros(len(row), dtype=np.bool_),
    )


def input_split(data: Arrays) -> Split:
    """Return the split of a filter file, made from its annotations."""
    counts = [(data["in_ann_cat"] == c).sum() for c in data["in_cat_id"]]
    split = make_split(data["in_cat_id"], counts, base_classes=data["base_size"], step=data["step_size"])
    assert_array_equal(split.order, data["sorted_cat_id"])
    return split


def file_order(ids: Any, kept: Any) -> Any:
    """Return the ids of ``kept`` in the order of ``ids``."""
    return ids[np.isin(ids, kept)]


def check_filter(path: Path) -> None:
    """Images, annotations and labels of the phases; validation files have the last phase only."""
    data = load(path)
    store, split = table(data), input_split(data)
    if "last_ann_id_sorted" in data:
        check_validation(data, store, split)
        return
    base = PhaseView(store, split, 0)
    assert_array_equal(base.image_ids, data["base_dataset_ids"])
    unfiltered = PhaseView(store, split, 0, min_size=-1)
    assert_array_equal(np.sort(store.ann_ids[unfiltered.annotations]), np.sort(data["base_ann_id"]))
    for phase in range(1, data["n_step"] + 1):
        check_phase(data, f"s{phase}_", PhaseView(store, split, phase))


def check_phase(data: Arrays, key: str, view: PhaseView) -> None:
    """One incremental phase; annotations that only the source's empty-list quirk keeps are dropped."""
    kept = np.setdiff1d(data[key + "ann_id_sorted"], data[key + "quirk_ann_id"])
    assert_array_equal(np.sort(view.store.ann_ids[view.annotations]), kept)
    assert_array_equal(view.image_ids, data[key + "dataset_ids"])
    assert_array_equal(file_order(view.store.image_ids, view.image_ids), data[key + "image_id"])
    assert_array_equal(view.store.image_ids[view.new_images], data[key + "distill_ids"])
    categories = file_order(view.store.category_ids, view.split.order[: view.num_classes])
    assert_array_equal(categories, data[key + "cat_id"])
    assert_array_equal(view.split.labels_of(view.split.order[: view.num_classes]) + 1, data[key + "label_of_cat"])
    classes = view.class_images
    assert_array_equal(classes.ptr, data[key + "cls_img_ptr"])
    assert_array_equal(classes.image_id, data[key + "cls_img_flat"])
    assert_array_equal(classes.image_counts, data[key + "ids_len"])
    present = classes.image_counts > 0
    assert_array_equal(classes.annotation_counts[present], data[key + "ann_num"][present])
    assert not classes.annotation_counts[~present].any()
    for index in range(len(view.images)):
        rows, labels = view.annotations_of(index)
        assert (view.store.ann_image[rows] == view.images[index]).all()
        assert_array_equal(view.split.order[labels], view.store.category_ids[view.store.ann_category[rows]])


def check_validation(data: Arrays, store: Any, split: Split) -> None:
    """Validation keeps every box; phases of classes are named ``b0, t0, t1, ...``."""
    view = PhaseView(store, split, data["n_step"], min_size=-1)
    assert_array_equal(np.sort(store.ann_ids[view.annotations]), data["last_ann_id_sorted"])
    assert_array_equal(file_order(store.image_ids, view.image_ids), data["last_image_id"])
    categories = file_order(store.category_ids, split.order[: view.num_classes])
    assert_array_equal(categories, data["last_cat_id"])
    phases = split.phase_of_label[split.labels_of(categories)]
    assert_array_equal(["b0" if p == 0 else f"t{p - 1}" for p in phases], data["intended_step_state"])


def check_class_images(path: Path) -> None:
    """The LVIS v0.5 class lists are consistent, in class order, and give the published epoch lengths."""
    data = load(path)
    by_id = np.argsort(data["sorted_cat_id"])
    split = make_split(data["sorted_cat_id"][by_id], data["ann_num"][by_id], base_classes=270, step=160)
    assert_array_equal(split.order, data["sorted_cat_id"])
    assert_array_equal(split.counts, data["ann_num"])
    lengths = []
    for phase in range(1, split.num_phases + 1):
        classes, num_old = prefix(data, split.classes_known(phase)), split.new_labels(phase).start
        lengths.append((len(classes.image_id) - classes.ptr[num_old], replay_counts(classes, num_old)[2].sum()))
    published = [(16352, 25150), (6514, 14109), (3283, 9184), (1688, 5955), (744, 2997), (263, 1334)]
    assert lengths == published


def prefix(data: Arrays, known: int) -> ClassImages:
    """Return the first classes of the LVIS v0.5 lists."""
    ptr = data["cls_img_ptr"][: known + 1].astype(np.int64)
    return ClassImages(ptr, data["cls_img_flat"][: ptr[-1]].astype(np.int64), data["ann_num"][:known])


def check_replay(path: Path) -> None:
    """Replay lists in the row layout of the notebooks."""
    data = load(path)
    if "cls_img_ptr" not in data:
        check_real_replay(path, data)
        return
    variant = "cyclic" if "python_random_seed" in data else "fixed" if "fixed" in path.stem else "resample"
    classes = ClassImages(data["cls_img_ptr"], data["cls_img_flat"], data["ann_num"])
    assert_array_equal(classes.image_counts, data["ids_len"])
    num_old = data["base_size"] + data["step_size"] * (data["step"] - 1)
    source = ReplaySource(classes, num_old, variant, seed=0, shuffle_seed=data.get("python_random_seed"))
    assert_array_equal(source.nominal, data["avg_sample_num_raw"])
    assert_array_equal(source.counts, data["avg_sample_num_used"])
    assert source.num_new_pairs == data["new_class_pairs"]
    assert source.num_new_pairs + source.nominal.sum() == data["epoch_len_nominal"]
    assert len(source) == data["epoch_len_actual"]
    image, label = legacy_rows(source, data["n_gpu"], data["n_iter"])
    assert_array_equal(np.unique(classes.image_id), data["dataset_ids"])
    assert_array_equal(np.searchsorted(data["dataset_ids"], image), data["out_image_index"])
    assert_array_equal(label + 1, data["out_class_label"])


def check_real_replay(path: Path, data: Arrays) -> None:
    """LVIS v0.5 at full size: checksums, and the parts stored in plain."""
    beside = path.parent / CLASS_IMAGES
    lists = load(beside if beside.exists() else DEFAULT_FOLDER / CLASS_IMAGES)
    for step in sorted(int(key[1:].split("_")[0]) for key in data if key.endswith("_n_iter")):
        key = f"s{step}_"
        num_old = data["base_size"] + data["step_size"] * (step - 1)
        classes = prefix(lists, num_old + data["step_size"])
        source = ReplaySource(classes, num_old, "fixed" if "fixed" in path.stem else "resample")
        assert_array_equal(source.nominal, data[key + "avg_sample_num_raw"])
        assert source.num_new_pairs == data[key + "new_class_pairs"]
        assert len(source) == data[key + "epoch_len_actual"]
        _, label = source.epoch(0)
        assert_array_equal(np.bincount(label, minlength=classes.num_classes), data[key + "epoch0_class_counts"])
        dataset = np.unique(classes.image_id)
        assert len(dataset) == data[key + "n_dataset_images"]
        image, label = legacy_rows(source, data["n_gpu"], data[key + "n_iter"])
        for name, rows in (("image", np.searchsorted(dataset, image)), ("class", label + 1)):
            stream = rows.reshape(-1).astype("<i8")
            assert hashlib.sha256(stream.tobytes()).hexdigest() == data[f"{key}sha256_{name}"]
            plain = "image_index" if name == "image" else "class"
            assert_array_equal(stream[:1000], data[f"{key}head_{plain}"])
            assert_array_equal(stream[-1000:], data[f"{key}tail_{plain}"])


def check_support(path: Path) -> None:
    """Support and query schedule of the weight generator."""
    data = load(path)
    passes = np.tile(np.repeat(np.arange(data["n_accum"]), 2), data["repeats"])
    assert_array_equal(passes, data["bin_list"])
    image, label = support_schedule(
        data["cls_img_ptr"], data["cls_img_flat"], data["first_label"], data["n_gpu"], data["repeats"]
    )
    assert_array_equal(image, data["indices_all"])
    assert_array_equal(label, data["classes_all"])
    assert_array_equal(image[:, 0::2], data["support_indices"])
    assert_array_equal(label[:, 0::2], data["support_classes"])
    assert_array_equal(image[:, 1::2], data["query_indices_alternating"])


def check_rank_batches(path: Path) -> None:
    """Every process reads its row; a resumed run goes on instead of restarting images at entry 0."""
    data = load(path)
    size, world = data["images_per_gpu"], len(data["indices"])
    start = data["resume_start_iter"]
    for key, name in (("indices", "batches"), ("classes", "classes")):
        stream = rows_to_stream(data[key], size)
        for rank in range(world):
            read = process_batches(stream, rank, world, size * world)[: data["max_iter"]]
            expected = data[f"r{rank}_{name}"]
            assert_array_equal(read, expected)
            resumed = process_batches(stream[start * size * world :], rank, world, size * world)
            assert_array_equal(resumed[: data["max_iter"] - start], expected[start:])


CHECKS = {
    "split_": check_split,
    "filter_": check_filter,
    "lvis_v05_train_class_images": check_class_images,
    "replay_": check_replay,
    "support_": check_support,
    "rank_batches": check_rank_batches,
}
