"""The catalogue reads methods without importing them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from ltpipe.config import catalogue
from ltpipe.config.catalogue import INJECTED, SLOTS, component, find, names, read_args, read_module
from ltpipe.errors import UserError

SOURCE = '''
@method("loss", "tilted")
class TiltedLoss(Base):
    """Tilts the loss.

    Args:
        num_classes: Injected.
        tilt: How much, in
            degrees; table 3.
        mode: Which: one or the other.
    """

    custom_activation = True

    def __init__(self, num_classes: int, tilt: float, mode: Literal["one", "other"] = "one", *,
                 sizes: list[int] | None = None) -> None:
        pass


class Helper:
    pass


@MODELS.register_module()
class NotOffered:
    pass


@method(slot="part", name="bare")
class Bare(HeadPart):
    pass
'''


def write(tmp_path: Path, text: str) -> Path:
    """Write a module."""
    file = tmp_path / "tilted.py"
    file.write_text(text)
    return file


def test_a_module_is_read(tmp_path: Path) -> None:
    tilted, bare = read_module(write(tmp_path, SOURCE))
    assert (tilted.slot, tilted.name, dict(tilted.component)) == ("loss", "tilted", {"type": "ltpipe.TiltedLoss"})
    assert tilted.injected == {"num_classes"} and tilted.summary == "Tilts the loss."
    assert tilted.flags == {"custom_activation": True}
    fields = tilted.options.model_fields
    assert list(fields) == ["tilt", "mode", "sizes"]
    assert fields["tilt"].is_required() and fields["tilt"].description == "How much, in degrees; table 3."
    assert (
        fields["mode"].annotation == Literal["one", "other"]
        and fields["mode"].description == "Which: one or the other."
    )
    assert tilted.options.model_validate({"tilt": "1e-3", "sizes": [1]}).model_dump() == {
        "tilt": 1e-3, "mode": "one", "sizes": [1],
    }  # fmt: skip
    with pytest.raises(ValidationError):
        tilted.options.model_validate({"tilt": 1, "mode": "both"})
    assert (bare.slot, bare.name, dict(bare.options.model_fields)) == ("part", "bare", {})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tilt: float", "tilt", "no type"),
        ("tilt: float", "tilt: Tensor", "plain types"),
        ('@method("loss"', '@method("lose"', "unknown slot"),
    ],
)
def test_what_cannot_be_offered(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        list(read_module(write(tmp_path, SOURCE.replace(old, new))))


HEIR = """

@method("loss", "steep")
class SteepLoss(TiltedLoss):
    '''Tilted more.

    Args:
        tilt: Steeper.
    '''

    needs_softmax = True
"""


def test_base_classes_of_the_module_are_followed(tmp_path: Path) -> None:
    tilted, _, steep = read_module(write(tmp_path, SOURCE + HEIR))
    assert steep.summary == "Tilted more." and dict(steep.component) == {"type": "ltpipe.SteepLoss"}
    assert steep.injected == tilted.injected
    assert steep.flags == {**tilted.flags, "needs_softmax": True}
    ours, theirs = (method.options.model_json_schema()["properties"] for method in (steep, tilted))
    assert ours.pop("tilt") == {**theirs.pop("tilt"), "description": "Steeper."}
    assert ours == theirs


def test_two_methods_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "methods").mkdir()
    for name in ("a", "b"):
        (tmp_path / "methods" / f"{name}.py").write_text(SOURCE)
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path)
    with pytest.raises(TypeError, match=r"a\.py and in b\.py"):
        catalogue.catalogue.__wrapped__()


def test_every_slot_offers_something() -> None:
    for slot in SLOTS:
        assert names(slot), slot
    assert {"linear", "cosine"} <= set(names("classifier"))
    assert {"random", "repeat_factor"} <= set(names("sampler"))
    assert {"fcn", "weight_transfer"} <= set(names("mask"))


def test_every_option_is_described() -> None:
    lacking = [
        f"{slot} {name}.{option}"
        for (slot, name), entry in catalogue.catalogue().items()
        for option, field in entry.options.model_fields.items()
        if not field.description
    ]
    assert not lacking


def test_components_are_complete_configs() -> None:
    assert component("mask", {"type": "fcn"}) == {}
    assert component("classifier", {"type": "cosine", "scale": 5}) == {"type": "ltpipe.CosineLinear", "scale": 5.0}
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        find("classifier", "cosin")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys; import ltpipe.pipeline.rules, ltpipe.cli, ltpipe.config.catalogue as c; c.catalogue(); "
    code += "print([m for m in ('torch', 'mmengine', 'mmdet', 'pandas', 'pyarrow', 'cv2') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_catalogue_agrees_with_the_classes() -> None:
    """Names, options and injected parameters are those of the imported classes."""
    import inspect

    import ltpipe.engine  # noqa: F401
    import ltpipe.methods  # noqa: F401
    from ltpipe.registry import MODELS

    for (slot, name), entry in catalogue.catalogue().items():
        if slot == "sampler" or "type" not in entry.component:
            continue
        cls = MODELS.get(entry.component["type"])
        assert cls is not None, (slot, name)
        parameters = set(inspect.signature(cls.__init__).parameters) - {"self", "args", "kwargs"}
        own = set(entry.options.model_fields) | entry.injected
        assert own <= parameters, (slot, name, own - parameters)
        assert entry.injected <= INJECTED


def test_args_sections() -> None:
    doc = "Summary.\n\n    Args:\n        a: First: with colon.\n        b (int): Second\n            line.\n"
    doc += "\n    Raises:\n        X: no."
    assert read_args(doc) == {"a": "First: with colon.", "b": "Second line."}
    assert read_args("No section.") == {}


def test_the_toy_options_are_read() -> None:
    options = catalogue.toy_options()
    assert options().model_dump()["num_classes"] >= 30
    assert isinstance(ast.literal_eval(repr(options().model_dump())), dict)
