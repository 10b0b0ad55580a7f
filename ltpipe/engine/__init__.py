"""What all stages share on the mmdet side. Importing the package registers its components with mmengine."""

from ltpipe.engine import (
    between_epochs,
    cascade,
    dataset,
    geometry,
    heads,
    hooks,
    loading,
    roi_sampling,
    sampler,
    transforms,
)

__all__ = [
    "between_epochs",
    "cascade",
    "dataset",
    "geometry",
    "heads",
    "hooks",
    "loading",
    "roi_sampling",
    "sampler",
    "transforms",
]
