"""What all stages share on the mmdet side. Importing the package registers its components with mmengine."""

from ltpipe.engine import (
    cascade,
    dataset,
    extra_images,
    geometry,
    heads,
    hooks,
    loading,
    roi_sampling,
    training_stream,
    transforms,
)

__all__ = [
    "cascade",
    "dataset",
    "extra_images",
    "geometry",
    "heads",
    "hooks",
    "loading",
    "roi_sampling",
    "training_stream",
    "transforms",
]
