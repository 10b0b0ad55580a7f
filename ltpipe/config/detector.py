"""Detector files, resolved: mmengine reads them with all their bases, without torch, and the checks ask the result.

A detector is a config of mmengine: a file, or one that mmdet ships, ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.
It is Python and runs when it is read: use files that you trust.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ltpipe.config.detector_keys import KNOWN, own_assignments, own_files, refuse_replaced, used_hooks
from ltpipe.errors import UserError

READ = ("model", "train_pipeline", "test_pipeline")
"""Variables that a detector consists of."""
DENSE_HEADS = ("bbox_head", "mask_head", "panoptic_head")
"""Heads of detectors without a RoI head that know classes."""
# One-stage heads of boxes that predict masks as well.
_HEADS_WITH_MASKS = frozenset({"RTMDetInsHead", "RTMDetInsSepBNHead"})
# Transforms after which a cached teacher or a cached feature no longer belongs to the image.
RANDOM_GEOMETRY = frozenset(
    {
        "Albu",
        "AutoAugment",
        "CachedMixUp",
        "CachedMosaic",
        "CopyPaste",
        "Expand",
        "MinIoURandomCrop",
        "MixUp",
        "Mosaic",
        "PasteObjects",
        "RandAugment",
        "RandomAffine",
        "RandomChoice",
        "RandomChoiceResize",
        "RandomCrop",
        "RandomCenterCropPad",
        "RandomResize",
        "RandomShift",
        "Rotate",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    }
)
DROPPING = RANDOM_GEOMETRY | {"FilterAnnotations", "RandomApply", "RandomErasing"}
"""Transforms after which an image may have fewer objects, or others."""
MIXING = frozenset({"CachedMixUp", "CachedMosaic", "CopyPaste", "MixUp", "Mosaic", "PasteObjects"})
"""Transforms of several images."""


@dataclass(frozen=True)
class ResolvedDetector:
    """A detector file with its bases merged in, as plain values.

    Attributes:
        source: The file, or ``mmdet::...``.
        model: The model.
        train_pipeline: Transforms of training.
        test_pipeline: Transforms of evaluation.
        imports: Modules of ``custom_imports``.
        hooks: ``custom_hooks`` that a training keeps.
        environment: ``env_cfg`` of a file of the user, over ltpipe's own.
        remarks: What mmdet's own files bring and nobody uses, one sentence each.
    """

    source: str
    model: Mapping[str, Any]
    train_pipeline: list[Any]
    test_pipeline: list[Any]
    imports: tuple[str, ...] = ()
    hooks: tuple[Mapping[str, Any], ...] = ()
    environment: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """What of the file decides a training, for its digest; a copy."""
        custom = {"custom_imports": list(self.imports), "custom_hooks": list(self.hooks), "env_cfg": self.environment}
        given = {key: value for key, value in custom.items() if value}
        return copy.deepcopy({**{key: getattr(self, key) for key in READ}, **given})

    @property
    def roi_head(self) -> Mapping[str, Any] | None:
        """The RoI head; None outside two-stage detectors."""
        return self.model.get("roi_head")

    @property
    def roi_head_type(self) -> str | None:
        """Class of the RoI head, ``StandardRoIHead``."""
        return None if self.roi_head is None else class_name(self.roi_head)

    @property
    def stages(self) -> int:
        """Stages of the RoI head: 0 without one, several in a cascade."""
        return 0 if self.roi_head is None else int(self.roi_head.get("num_stages", 1))

    def heads(self, kind: str) -> list[Mapping[str, Any]]:
        """Heads of all stages, ``kind`` being ``bbox_head`` or ``mask_head``; one that all stages share comes once."""
        found = None if self.roi_head is None else self.roi_head.get(kind)
        return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]

    @property
    def has_masks(self) -> bool:
        """Whether the detector predicts masks."""
        return has_masks(self.model)

    @property
    def random_geometry(self) -> list[str]:
        """Names of the transforms of training whose geometry differs from epoch to epoch."""
        return [name for step in self.train_pipeline for name in _transforms(step) if name in RANDOM_GEOMETRY]

    @property
    def hidden_mixing(self) -> list[str]:
        """Names of the transforms of several images that stand inside others."""
        inner = (value for step in self.train_pipeline if isinstance(step, Mapping) for value in step.values())
        return [name for value in inner for name in _transforms(value) if name in MIXING]

    @property
    def backbone(self) -> str:
        """Short name of the backbone, ``R-50`` for a ResNet, ``X-101`` for a ResNeXt, its class for others."""
        config = self.model.get("backbone", {})
        kind = {"ResNet": "R", "ResNeXt": "X"}.get(class_name(config))
        return class_name(config) if kind is None else f"{kind}-{config.get('depth', 0)}"


def has_masks(model: Mapping[str, Any]) -> bool:
    """Whether the detector of a model config predicts masks."""
    roi_head = model.get("roi_head")
    if roi_head is not None:
        return roi_head.get("mask_head") not in (None, [])
    if class_name(model.get("bbox_head") or {}) in _HEADS_WITH_MASKS:
        return True
    return any(model.get(head) is not None for head in ("mask_head", "panoptic_head"))


def class_name(config: Mapping[str, Any]) -> str:
    """Name of the class that a config builds, without its module or scope."""
    return str(config.get("type", "")).rpartition(".")[2]


def _transforms(step: Any) -> Iterator[str]:
    """Yield the classes of a transform and of those inside it."""
    if isinstance(step, Mapping):
        yield class_name(step)
        step = list(step.values())
    if isinstance(step, list | tuple):
        for inner in step:
            yield from _transforms(inner)


# By absolute path, or `mmdet::...`: the detector, and the user's files that it was read from as they were then.
_RESOLVED: dict[str, tuple[ResolvedDetector, dict[Path, tuple[int, ...] | None]]] = {}


def resolve_detector(source: str | Path, where: object = "detector.config") -> ResolvedDetector:
    """Read a detector with all its bases; a process reads one again only when its files have changed.

    Args:
        source: A config file, or ``mmdet::FOLDER/FILE.py``.
        where: File and key of the experiment.

    Raises:
        UserError: It is missing, cannot be read, or lacks a variable; or a variable is misspelt, or not heard.
    """
    shipped = "::" in str(source)
    place = str(source) if shipped else os.path.abspath(source)
    known, files = _RESOLVED.get(place, (None, {}))
    if known is None or known.source != str(source) or any(_stamp(file) != stamp for file, stamp in files.items()):
        known = _resolve(source, where)
        _RESOLVED[place] = known, {} if shipped else {file.absolute(): _stamp(file) for file in own_files(Path(source))}
    return known


def _stamp(file: Path) -> tuple[int, ...] | None:
    """What differs after a file was edited or replaced; None without the file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _resolve(source: str | Path, where: object) -> ResolvedDetector:
    values = read_mmengine_config(source, where)
    for name in values:
        near = [] if name in KNOWN else get_close_matches(name, KNOWN, n=1, cutoff=0.85)
        if near:
            raise UserError(
                "unknown key of the detector file", where=source, got=name, fix=f"did you mean {near[0]!r}?"
            )
    for name in READ:
        if name not in values:
            raise UserError("the detector file is incomplete", where=source, got=f"no {name!r}", allowed=READ)
    remarks = refuse_replaced(source, values)
    imports = values.get("custom_imports") or {}
    own = "::" not in str(source) and "env_cfg" in own_assignments(Path(source))
    model, training, testing = (values[key] for key in READ)
    return ResolvedDetector(
        str(source),
        model,
        training,
        testing,
        imports=tuple(_listed(imports.get("imports"))),
        hooks=tuple(used_hooks(values)),
        environment=values["env_cfg"] if own else None,
        remarks=remarks,
    )


def read_mmengine_config(source: str | Path, where: object = "detector.config") -> dict[str, Any]:
    """Return the variables of an mmengine config with all its bases, as plain values; its components are not imported.

    Raises:
        UserError: It is missing, or running it fails.
    """
    from mmengine.config import Config

    if "::" in str(source):
        return _values(source, where, lambda: Config.fromstring(f"_base_ = [{str(source)!r}]", ".py"))
    path = Path(source)
    if not path.is_file():
        near = sorted(str(f) for f in path.parent.glob("*.py"))
        raise UserError("the detector file does not exist", where=where, got=path, allowed=near or "a config file")
    return _values(source, where, lambda: Config.fromfile(path, format_python_code=False, import_custom_modules=False))


def _values(source: str | Path, where: object, read: Any) -> dict[str, Any]:
    try:
        return dict(modern_spelling(read().to_dict()))
    except Exception as error:  # a config is a program: it may fail in any way
        if isinstance(error, SyntaxError):
            file = source if error.filename in (None, "<unknown>") else error.filename
            raise UserError("the detector file is not Python", where=f"{file}:{error.lineno}", got=error.msg) from error
        got = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError("the detector file cannot be read", where=source, got=got, fix=f"see {where}") from error


def modern_spelling(value: Any) -> Any:
    """Return a copy of nested mappings, lists and values, mmdet's ``tempearture`` (until 3.3) spelt ``temperature``."""
    if isinstance(value, Mapping):
        return {"temperature" if k == "tempearture" else str(k): modern_spelling(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(modern_spelling(v) for v in value)
    return value


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
