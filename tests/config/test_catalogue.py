"""Options are described by constructors; the catalogue knows them without importing torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from ltpipe.config import catalogue
from ltpipe.config.catalogue import SLOTS, component, find, names
from ltpipe.config.options import INJECTED, annotation, describe, options_model, read_args
from ltpipe.errors import UserError
from ltpipe.interop.class_order import PER_CLASS
from ltpipe.pipeline.digests import stage_digest
from tests.helpers.small_project import Load


class Tilted:
    """Tilts the loss.

    Args:
        num_classes: Injected.
        tilt: How much, in
            degrees; table 3.
        mode: Which: one or the other.
    """

    custom_activation = True
    _secret = 1

    def __init__(
        self,
        num_classes: int,
        tilt: float,
        mode: Literal["one", "other"] = "one",
        *,
        sizes: list[int] | None = None,
        **kwargs: object,
    ) -> None: ...

    @property
    def angle(self) -> float:
        """Not a fact."""
        return 0.0


class Steep(Tilted):
    """Tilted more.

    Args:
        tilt: Steeper.
    """

    needs_softmax = True


def test_what_methods_get_class_by_class_is_reordered_with_the_classes() -> None:
    """An exported config has its classes in another order."""
    per_class = {name for name in INJECTED if name.startswith("class_") or name.endswith("_counts")}
    assert per_class - {"class_features"} <= set(PER_CLASS)


def test_a_constructor_is_the_description() -> None:
    found = describe(Tilted)
    assert found["summary"] == "Tilts the loss." and found["injected"] == ["num_classes"]
    assert found["facts"] == {"custom_activation": True}
    fields = options_model("Tilted", found["options"]).model_fields
    assert list(fields) == ["tilt", "mode", "sizes"]
    assert fields["tilt"].is_required() and fields["tilt"].description == "How much, in degrees; table 3."
    assert fields["mode"].annotation == Literal["one", "other"]
    assert fields["mode"].description == "Which: one or the other."
    options = options_model("Tilted", found["options"])
    given = options.model_validate({"tilt": "1e-3", "sizes": [1]})
    assert given.model_dump() == {"tilt": 1e-3, "mode": "one", "sizes": [1]}
    for wrong in ({"tilt": 1, "mode": "both"}, {"tilt": 1, "sizes": ["a"]}, {"tilt": 1, "angle": 2}, {}):
        with pytest.raises(ValidationError):
            options.model_validate(wrong)


def test_base_classes_are_followed() -> None:
    tilted, steep = describe(Tilted), describe(Steep)
    assert steep["summary"] == "Tilted more." and steep["injected"] == tilted["injected"]
    assert steep["facts"] == {**tilted["facts"], "needs_softmax": True}
    assert steep["options"].pop("tilt") == {**tilted["options"].pop("tilt"), "description": "Steeper."}
    assert steep["options"] == tilted["options"]


def test_what_cannot_be_offered() -> None:
    class Untyped:
        def __init__(self, tilt) -> None: ...  # type: ignore[no-untyped-def]

    class Foreign:
        def __init__(self, tilt: threading.Lock) -> None: ...

    for cls, words in ((Untyped, "no type"), (Foreign, "plain types")):
        with pytest.raises(TypeError, match=words):
            describe(cls)


@pytest.mark.parametrize(
    "kind",
    [int, float, bool, str, Any, int | None, list[float], Literal["a", "b", None], Literal[1], float | str | None]
    + [list[dict[str, Any]], list[int] | None],
)
def test_types_survive_their_schema(kind: Any) -> None:
    schema = TypeAdapter(kind).json_schema()
    assert TypeAdapter(annotation(schema)).json_schema() == schema


PLUGIN = """
from torch import nn

from ltpipe.registry import method


@method("loss", "{name}")
class TiltedLoss(nn.Module):
    '''Tilts.

    Args:
        num_classes: Foreground classes.
        tilt: How much.
    '''

    softmax_scores = False

    def __init__(self, num_classes: int, tilt: float = {tilt}) -> None:
        super().__init__()
"""


@pytest.fixture
def forget_plugins() -> Iterator[None]:
    """Take plug-ins out of the catalogue again."""
    yield
    for key in [key for key, entry in catalogue.catalogue().items() if entry.plugin is not None]:
        del catalogue.catalogue()[key]


def test_plugins(load: Load, project: Path, forget_plugins: None) -> None:
    (project / "our_losses").mkdir()
    (project / "our_losses" / "__init__.py").write_text("")
    module = project / "our_losses" / "tilted.py"
    module.write_text(PLUGIN.format(name="tilted", tilt=2.5))
    loss = ("model:\n", "model:\n  loss: {type: tilted}\n")
    with pytest.raises(UserError, match="unknown loss"):
        load(*loss)
    plugin = ("dataset:\n", "plugins: [our_losses.tilted]\ndataset:\n")
    exp = load(*loss, *plugin)
    assert exp.model.loss.options == {"tilt": 2.5}
    assert component("loss", exp.model.loss) == {"type": "ltpipe.TiltedLoss", "tilt": 2.5}
    assert find("loss", "tilted").flags == {"softmax_scores": False}
    with pytest.raises(UserError, match=r"unknown key of loss tilted"):
        load("model:\n", "model:\n  loss: {type: tilted, tip: 1}\n", *plugin)
    with pytest.raises(UserError, match=r"plugins: \[our_losses.tilted\]"):
        load(*loss)
    before = stage_digest(exp, "base"), stage_digest(exp, "evaluate"), stage_digest(load(), "base")
    module.write_text(PLUGIN.format(name="tilted", tilt=2.5) + "# another text\n")
    after = stage_digest(exp, "base"), stage_digest(exp, "evaluate"), stage_digest(load(), "base")
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot be found"), ("1 / 0", "ZeroDivisionError"), (PLUGIN.format(name="seesaw", tilt=1), "'seesaw' is")],
)
def test_plugins_that_cannot_be_used(
    load: Load, project: Path, text: str | None, words: str, forked_python: None
) -> None:
    name = f"wrong_{abs(hash(text))}"  # modules are looked for once
    if text is not None:
        (project / f"{name}.py").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load("dataset:\n", f"plugins: [{name}]\ndataset:\n")
    assert "small.yaml:" in str(error.value)


def test_the_committed_descriptions_are_current() -> None:
    """``ltpipe schema --write`` renews them."""
    from ltpipe.registry import catalogue_content

    assert catalogue.described() == json.loads(json.dumps(catalogue_content()))


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


def test_args_sections() -> None:
    doc = "Summary.\n\n    Args:\n        a: First: with colon.\n        b (int): Second\n            line.\n"
    doc += "\n    Raises:\n        X: no."
    assert read_args(doc) == {"a": "First: with colon.", "b": "Second line."}
    assert read_args("No section.") == {}


def test_the_toy_options_are_read() -> None:
    options = catalogue.toy_options()
    assert options().model_dump()["num_classes"] >= 30
    assert isinstance(ast.literal_eval(repr(options().model_dump())), dict)
