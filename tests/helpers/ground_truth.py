"""Ground truth from JSON, the way the pipeline reads it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ltpipe.data.formats import annotation_format
from ltpipe.data.store import AnnotationStore
from ltpipe.data.store_writer import build_store


def read_ground_truth(path: Path) -> AnnotationStore:
    """Open an annotation file; its store lives as long as the maps of its files."""
    with tempfile.TemporaryDirectory() as folder:
        build_store(path, Path(folder) / "store", fmt=annotation_format(path), progress=False)
        store = AnnotationStore.open(Path(folder) / "store")
        return store
