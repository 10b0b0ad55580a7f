"""What all stages share on the mmdet side. Importing the package registers its components with mmengine."""

from importlib import import_module

for _name in (
    "averaging", "checkpoint_readers", "dataset", "efficientnet_lite", "extra_images", "geometry", "heads", "hooks",
    "loaders", "mixing", "one_stage", "precision", "roi_heads", "roi_sampling", "training_stream", "transforms",
):  # fmt: skip
    import_module(f"{__name__}.{_name}")
