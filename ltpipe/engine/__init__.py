"""What all stages share on the mmdet side. Importing the package registers its components with mmengine."""

from ltpipe.engine import dataset, heads, hooks, sampler

__all__ = ["dataset", "heads", "hooks", "sampler"]
