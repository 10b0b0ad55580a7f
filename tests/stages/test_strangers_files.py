"""Files from somebody else: whichever a command reads, nothing in it runs, and one error says what it asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_project import assert_same_state, command_line, kill_here, run_stages
from trainings import cut_short

from ltpipe.spec.paths import Paths
from ltpipe.torch_files import Refused, load_plain

if TYPE_CHECKING:
    from conftest import Chain


class Harmful:
    """Makes a folder when it is unpickled.

    Args:
        marker: The folder.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def assert_harmful(file: Path, marker: Path) -> None:
    """Show that an ordinary reader does run the file."""
    torch.load(file, weights_only=False)
    marker.rmdir()


# ---- states of killed runs -------------------------------------------------------------------------------------------


def killed(chain: Chain, folder: Path, stage: str, key: int | None) -> Paths:
    """Return results in which a training was killed before its third iteration."""
    paths = chain.copy(folder)
    assert cut_short(chain.exp, paths, stage, key, 2, kill_here) == -9
    return paths


@pytest.mark.parametrize(("stage", "key"), [("base", None), ("lst", 1)])
def test_the_state_of_a_training(chain: Chain, tmp_path: Path, stage: str, key: int | None) -> None:
    paths, marker = killed(chain, tmp_path, stage, key), tmp_path / "executed"
    for file in paths.work(stage, key).glob("iter_*.pth"):
        state = load_plain(file)
        state["meta"]["harmful"] = Harmful(marker)
        torch.save(state, file)
        assert_harmful(file, marker)
    with pytest.raises(Refused, match=r"mkdir") as caught:
        run_stages(chain.exp, paths.results, stage if key is None else (stage, key))
    assert not marker.exists() and str(caught.value.where).endswith("iter_2.pth")
    options = [] if key is None else ["--phase", key]
    code, text = command_line(stage, chain.exp.file, *options, "--results", paths.results)
    assert code == 2 and "mkdir" in text and "--fresh" in text and "Traceback" not in text
    assert not marker.exists()


def test_the_text_of_a_config_in_a_state_is_not_run(chain: Chain, tmp_path: Path) -> None:
    """mmengine runs what a state calls its config."""
    paths, marker = killed(chain, tmp_path, "base", None), tmp_path / "executed"
    for file in paths.work("base").glob("iter_*.pth"):
        state = load_plain(file)
        state["meta"]["config"] = f"import os\nos.mkdir({str(marker)!r})\n"
        torch.save(state, file)
    run_stages(chain.exp, paths.results, "base")
    assert not marker.exists()
    assert_same_state(paths.model("base"), chain.paths.model("base"))


def test_the_state_of_a_calibration(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, marker = chain.copy(tmp_path), tmp_path / "executed"
    monkeypatch.setattr("ltpipe.stages.calibrate.write_checkpoint", fail)
    with pytest.raises(ArithmeticError):
        run_stages(chain.exp, paths.results, ("calibrate", "simcal"))
    file = paths.work("calibrate", "simcal") / "head.pth"
    torch.save(load_plain(file) | {"harmful": Harmful(marker)}, file)
    assert_harmful(file, marker)
    with pytest.raises(Refused, match="mkdir"):
        run_stages(chain.exp, paths.results, ("calibrate", "simcal"))
    assert not marker.exists()


def fail(*_: object) -> None:
    raise ArithmeticError("a defect")
