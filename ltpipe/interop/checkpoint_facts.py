"""What a converted checkpoint is: classes, loss, classifier, mask head; what the file cannot say is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ltpipe.errors import UserError
from ltpipe.interop.mmdet2 import iif_options

_BOX = r"roi_head\.bbox_head\.(?:\d\.)?"


@dataclass(frozen=True)
class StatedFacts:
    """What the user says of a checkpoint; None where nothing is said.

    Attributes:
        loss: ``model.loss.type``.
        classifier: ``model.classifier.type``.
        temperature: Of a normalised classifier.
        mask: ``model.mask.type``.
        variant: Column of IIF's tables, e.g. ``raw`` or ``base10_obj``.
    """

    loss: str | None = None
    classifier: str | None = None
    temperature: float | None = None
    mask: str | None = None
    variant: str | None = None


@dataclass
class Facts:
    """The choices of ``model`` that belong to a checkpoint, and where each is known from."""

    model: dict[str, dict[str, Any]] = field(default_factory=dict)
    known_from: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def settle(self, slot: str, options: Sequence[tuple[str, dict[str, Any] | None]], ask: str) -> None:
        """Take the first option there is, or note what to ask for.

        Args:
            slot: Slot of ``model``.
            options: Where from and choice; None where it says nothing.
            ask: Command line option, with its values.
        """
        for source, choice in options:
            if choice is not None:
                self.model[slot], self.known_from[slot] = choice, source
                return
        self.asked.append(ask)


def rows_of(state: Mapping[str, Tensor], layer: str) -> int | None:
    """Return the rows of a layer of the (first) box or mask head; None if there is no such layer."""
    pattern = re.compile(rf"roi_head\.(bbox_head|mask_head)\.(?:\d\.)?{layer}\.weight$")
    return next((len(value) for key, value in state.items() if pattern.match(key)), None)


def describe(
    state: Mapping[str, Tensor],
    num_classes: int,
    given: StatedFacts,
    configured: Mapping[str, dict[str, Any]],
    *,
    plain_heads: bool,
) -> Facts:
    """Return the choices a detector was trained with.

    Args:
        state: Converted state with box heads.
        num_classes: Foreground classes K.
        given: What the user says; it wins over the stored config, not over the weights.
        configured: Choices that the config stored with the weights names.
        plain_heads: Whether the source has linear classifiers, softmax and mmdet's mask head only.

    Raises:
        UserError: The weights contradict what is said, or leave something open: names the options to give.
    """
    facts = Facts()
    plain = "the repository's detectors" if plain_heads else None
    _settle_classifier(facts, state, given, configured, plain)
    _settle_loss(facts, state, num_classes, given, configured, plain)
    _settle_mask(facts, state, given, configured, plain)
    if any(key.startswith("roi_head.parts.") for key in state):
        facts.model["part"], facts.known_from["part"] = {"type": "fasa"}, "weights"
    if facts.asked:
        raise UserError(
            "the weights do not say how the detector was built", got=f"unknown: {', '.join(sorted(_unknown(facts)))}",
            fix="give " + ", and ".join(facts.asked),
        )  # fmt: skip
    return facts


def _unknown(facts: Facts) -> set[str]:
    return {ask.split()[0].removeprefix("--") for ask in facts.asked}


def _settle_classifier(
    facts: Facts, state: Mapping[str, Tensor], given: StatedFacts, configured: Mapping[str, Any], plain: str | None
) -> None:
    has_scale = any(re.match(_BOX + r"fc_cls\.scale$", key) for key in state)
    if has_scale or given.classifier == "cosine":
        _agree("--classifier", given.classifier, "cosine" if has_scale else "linear or normed_linear")
        facts.model["classifier"], facts.known_from["classifier"] = {"type": "cosine"}, "weights"
        return
    said: dict[str, Any] | None = None
    if given.classifier is not None:
        said = {"type": given.classifier}
        if given.classifier == "normed_linear":
            if given.temperature is None:
                facts.asked.append("--temperature T (published: 20, or 8 for IIF with FASA)")
                return
            said["temperature"] = given.temperature
    options = [
        ("the command line", said),
        ("the stored config", configured.get("classifier")),
        (plain or "", {"type": "linear"} if plain else None),
    ]
    facts.settle("classifier", options, "--classifier linear or normed_linear (then with --temperature)")


def _settle_loss(
    facts: Facts,
    state: Mapping[str, Tensor],
    num_classes: int,
    given: StatedFacts,
    configured: Mapping[str, Any],
    plain: str | None,
) -> None:
    rows, stored = rows_of(state, "fc_cls"), configured.get("loss", {})
    assert rows is not None
    shown = _losses_of_rows(rows - num_classes, state)
    if not shown:
        raise UserError(
            "the classifier does not fit the number of classes", got=f"{rows} rows for {num_classes} classes",
            allowed=f"{num_classes} (EQL, GOL), {num_classes + 1} (softmax, IIF, EQLv2, ECM), {num_classes + 2} "
            "(Seesaw), or some more (group softmax)", fix="give the class list of the data set it was trained on",
        )  # fmt: skip
    for name in (given.loss, stored.get("type")):
        if name not in (None, *shown):
            _agree("--loss", name, " or ".join(shown))
    options = [
        ("weights", {"type": shown[0]} if len(shown) == 1 else None),
        ("the command line", None if given.loss is None else {"type": given.loss}),
        ("the stored config", dict(stored) or None),
        (plain or "", {"type": "cross_entropy"} if plain else None),
    ]
    alike = " or ".join(f"{name} (then with --variant)" if name == "iif" else name for name in shown)
    facts.settle("loss", options, f"--loss {alike}")
    loss = facts.model.get("loss", {})
    if loss.get("type") == "iif" and given.variant is not None:
        loss.update(iif_options(given.variant))
    elif loss.get("type") == "iif" and "variant" not in loss:
        loss.update({k: stored[k] for k in ("variant", "count") if k in stored})
        if "variant" not in loss:
            facts.asked.append("--variant, the column of IIF's tables (raw, base10_obj, ...)")


NO_BACKGROUND = ("eql", "droploss", "gol")
WITH_BACKGROUND = ("cross_entropy", "iif", "ecm", "gumbel", "acsl", "federated")
"""Losses that leave nothing of their own in the weights; their scores differ."""


def _losses_of_rows(extra: int, state: Mapping[str, Tensor]) -> list[str]:
    """Losses whose classifier has that many rows more than there are classes."""
    if any(re.match(_BOX + r"loss_cls\.pos_grad$", key) for key in state):
        return ["eqlv2"] if extra == 1 else []
    if extra > 2:
        return ["group_softmax"]
    return {0: list(NO_BACKGROUND), 1: list(WITH_BACKGROUND), 2: ["seesaw"]}.get(extra, [])


def _settle_mask(
    facts: Facts, state: Mapping[str, Tensor], given: StatedFacts, configured: Mapping[str, Any], plain: str | None
) -> None:
    if any(".weight_transfer." in key for key in state):
        _agree("--mask", given.mask, "weight_transfer")
        fusion = "full" if any(".mlp_fusion." in key for key in state) else "none"
        facts.model["mask"], facts.known_from["mask"] = {"type": "weight_transfer", "fusion": fusion}, "weights"
        return
    if rows_of(state, "conv_logits") is None:
        return
    options = [
        ("the command line", None if given.mask is None else {"type": given.mask}),
        ("the stored config", configured.get("mask")),
        (plain or "", {"type": "fcn"} if plain else None),
    ]
    facts.settle("mask", options, "--mask fcn or normed")


def _agree(option: str, said: str | None, shown: str) -> None:
    if said is not None and said != shown:
        raise UserError("the weights say otherwise", where=option, got=said, allowed=shown)
