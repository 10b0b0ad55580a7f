"""FRACAL against ``kostas1515/FRACAL``: fractal dimensions, and scores of softmax and sigmoid heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.testing import assert_close

from ltpipe.data.fractal_dimension import fractal_dimensions
from ltpipe.methods.fracal.calibrator import FRACAL
from tests.helpers.post_hoc import scores_of

METHOD = "fracal"


def check_dimension(path: Path) -> None:
    """From box centres."""
    with np.load(path, allow_pickle=False) as z:
        found = fractal_dimensions(z["centre_x"], z["centre_y"], z["label"], int(z["num_classes"]), int(z["grid"]))
        np.testing.assert_allclose(found, z["fractal_dimension"], rtol=0, atol=1e-6)


def check_scores(path: Path) -> None:
    """Every variant and strength; the reference's ``smooth`` has its sign error."""
    with np.load(path, allow_pickle=False) as file:
        z = {name: file[name] for name in file.files}
    images, instances = z["image_counts"].tolist(), z["instance_counts"].tolist()
    logits, classes = torch.from_numpy(z["logits"]), len(images)
    names = [name.removeprefix("w_") for name in z if name.startswith("w_")]
    assert names
    for name in names:
        variant, count = name.removesuffix("_obj"), "instance" if name.endswith("_obj") else "image"
        options = {"variant": {"smooth": "smooth_published"}.get(variant, variant), "count": count}
        for index, strength in enumerate(z["lambdas"].tolist()):
            calibrator = FRACAL(
                classes,
                images,
                instances,
                fractal_dimension=z["fractal_dimension"].tolist(),
                num_images=int(z["num_images"]),
                strength=strength,
                **options,
            )
            np.testing.assert_allclose(np.append(calibrator.shift, 0), z[f"w_{name}"], rtol=2e-6, atol=3e-6)
            expected = torch.from_numpy(z[f"scores_{name}_{index}"])
            assert_close(scores_of(calibrator, logits), expected, rtol=5e-5, atol=1e-12)
            sigmoid = torch.from_numpy(z[f"sigmoid_{name}_{index}"])
            found = scores_of(calibrator, logits[:, :classes], loss="eql")[:, :classes]
            assert_close(found, sigmoid, rtol=5e-5, atol=1e-12)


CHECKS = {"dimension_": check_dimension, "scores_": check_scores}
