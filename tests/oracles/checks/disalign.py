"""DisAlign against its own repositories: logits, loss and gradients, and some steps of training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.models.losses import CrossEntropyLoss
from torch import Tensor, nn
from torch.testing import assert_close

from ltpipe.config.schedules import CalibrationSchedule
from ltpipe.engine.calibrator_training import train_head
from ltpipe.methods.disalign.calibrator import DisAlign
from ltpipe.registry import MODELS

METHOD = "disalign"
TRAINED = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "confidence_weight": "confidence.weight",
    "confidence_bias": "confidence.bias",
}


class CosineRows(nn.Linear):
    """The cosine classifier of the reference: rows and features of unit length, times a learnt scale, no bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.scale * nn.functional.linear(
            nn.functional.normalize(x, dim=1), nn.functional.normalize(self.weight, dim=1)
        )


MODELS.register_module(name="DisAlignOracleCosine", module=CosineRows, force=True)


def read(path: Path) -> dict[str, Tensor]:
    """Arrays as tensors."""
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def calibrator_of(z: dict[str, Tensor]) -> DisAlign:
    """The calibrator of the file's classifier, with the file's parameters."""
    weight, cosine = z["cls_weight"], bool(z["cosine"])
    classes = len(weight) - 1
    classifier = (CosineRows if cosine else nn.Linear)(weight.shape[1], classes + 1)
    rest = {"scale": z["cosine_scale"]} if cosine else {"bias": z["cls_bias"]}
    classifier.load_state_dict({"weight": weight, **rest})
    head = SimpleNamespace(
        fc_cls=classifier,
        loss_cls=CrossEntropyLoss(),
        cls_predictor_cfg={"type": "ltpipe.DisAlignOracleCosine" if cosine else "Linear"},
        custom_cls_channels=False,
    )
    counts = z["counts"].tolist()
    calibrator = DisAlign(classes, counts, counts, exponent=float(z["exponent"]))
    calibrator.initialise(head)
    own = calibrator.fc_cls.state_dict()
    assert torch.equal(own["logit_scale"], torch.ones(classes)) and not own["logit_bias"].any()
    calibrator.fc_cls.load_state_dict({**own, **{mine: z[name] for name, mine in TRAINED.items()}})
    return calibrator


def check_head(path: Path) -> None:
    """Class weights, logits before and after, scores, loss and gradients of all that is trained."""
    z = read(path)
    calibrator = calibrator_of(z)
    assert_close(calibrator.row_weight, z["class_weights"], rtol=1e-5, atol=0)
    plain = calibrator.fc_cls.classifier(z["features"])
    assert_close(plain.detach(), z["plain_logits"], rtol=1e-4, atol=2e-5)
    logits, loss = calibrator.train_losses(z["features"], z["labels"])
    assert_close(logits.detach(), z["aligned_logits"], rtol=1e-4, atol=2e-5)
    assert_close(calibrator.scores(logits.detach()), z["scores"], rtol=1e-4, atol=1e-9)
    assert_close(loss.detach(), z["loss"], rtol=1e-5, atol=0)
    loss.backward()
    for name, mine in TRAINED.items():
        assert_close(calibrator.fc_cls.get_parameter(mine).grad, z[f"grad_{name}"], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in calibrator.fc_cls.classifier.parameters())


def check_training(path: Path) -> None:
    """Losses of every step and the parameters after the last, through the training loop of all calibrators."""
    z = read(path)
    calibrator, losses = calibrator_of(z), []
    steps = len(z["labels"])
    schedule = CalibrationSchedule(
        iterations=steps,
        lr=float(z["lr"]),
        drops=(),
        momentum=float(z["momentum"]),
        weight_decay=float(z["weight_decay"]),
    )

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(z["features"][first:], z["labels"][first:], strict=True)

    train_head(calibrator, batches, schedule, report=lambda _, facts: losses.append(facts["loss"]), report_every=1)
    assert_close(torch.tensor(losses, dtype=torch.float64), z["losses"], rtol=1e-5, atol=0)
    for name, mine in TRAINED.items():
        assert_close(calibrator.fc_cls.get_parameter(mine).detach(), z[f"final_{name}"], rtol=1e-4, atol=1e-6)


CHECKS = {"head_": check_head, "training_": check_training}
