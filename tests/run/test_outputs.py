"""Commands that write where the user says replace what ltpipe made, as ltpipe made it, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ltpipe.errors import UserError
from ltpipe.run import outputs
from ltpipe.run.files import sha256_file
from ltpipe.run.outputs import NotOurs, Output
from tests.helpers.tiny_project import ended, in_child, kill_here

NAMES = ("images/1.png", "images/2.png", "all.json")


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything in a folder: links by target, files by content, inode and time."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = (os.readlink(path),)
        elif path.is_file():
            found[name] = (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        else:
            found[name] = ()
    return found


def write_file(target: Path, text: str = "made", *inputs: Path, command: str = "test") -> dict[str, object]:
    """Make a file as a command does; return the record."""
    output = Output(target, command, inputs=inputs)
    with output.write({"text": text}) as temporary:
        assert temporary.parent == target.parent and temporary.name.endswith(target.suffix)
        temporary.write_text(text)
    return output.record


def write_folder(target: Path, text: str = "made", names: tuple[str, ...] = NAMES) -> None:
    """Make files in a folder as a command does."""
    with Output(target, "test", names=names).write() as temporary:
        for name in names:
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(f"{text} {name}")


# ---- a file ----------------------------------------------------------------------------------------------------------


def test_a_file_and_its_record(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.json"
    record = write_file(target)
    assert target.read_text() == "made"
    assert record == {"made_by": "ltpipe test", "text": "made", "files": {"x.json": sha256_file(target)}}
    assert json.loads((tmp_path / "new" / "x.json.record.json").read_text()) == record
    assert len(list(target.parent.iterdir())) == 2


def test_what_ltpipe_made_is_replaced_and_the_same_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    write_file(target)
    inode, before = target.stat().st_ino, target.stat().st_mtime_ns
    write_file(target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (inode, before)
    write_file(target, "other")
    assert target.read_text() == "other"
    target.unlink()
    write_file(target, "again")
    assert target.read_text() == "again", "whatever the record says of a file that is gone"


def foreign(target: Path) -> None:
    target.write_text("mine")


def edited(target: Path) -> None:
    write_file(target)
    target.write_text("made by me")


def link(target: Path) -> None:
    (target.parent / "mine").write_text("mine")
    target.symlink_to("mine")


def broken_link(target: Path) -> None:
    target.symlink_to("nowhere")


def ours_moved_behind_a_link(target: Path) -> None:
    write_file(target)
    target.rename(target.parent / "moved")
    target.symlink_to("moved")


def folder(target: Path) -> None:
    target.mkdir()
    (target / "mine").write_text("mine")


def foreign_record(target: Path) -> None:
    target.with_name(f"{target.name}.record.json").write_text('{"files": {}, "mine": 1}')


def damaged_record(target: Path) -> None:
    write_file(target)
    target.with_name(f"{target.name}.record.json").write_text("{")


def linked_record(target: Path) -> None:
    write_file(target)
    record = target.with_name(f"{target.name}.record.json")
    record.rename(target.parent / "kept.json")
    record.symlink_to("kept.json")


def of_another_command(target: Path) -> None:
    write_file(target, command="convert")


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (foreign, "ltpipe did not make what lies here"),
        (edited, "a file has changed since ltpipe made it"),
        (link, "a link, folder or device"),
        (broken_link, "a link, folder or device"),
        (ours_moved_behind_a_link, "a link, folder or device"),
        (folder, "a folder lies where a file"),
        (foreign_record, "the record is not one of 'ltpipe test'"),
        (damaged_record, "the record is not one of 'ltpipe test'"),
        (linked_record, "the record is not one of 'ltpipe test'"),
        (of_another_command, "'ltpipe convert'"),
    ],
)
def test_nothing_else_is_replaced(tmp_path: Path, before: Callable[[Path], None], words: str) -> None:
    target = tmp_path / "x.json"
    before(target)
    kept = snapshot(tmp_path)
    with pytest.raises(NotOurs, match=words) as caught:
        write_file(target, "new")
    assert str(target) in str(caught.value) and caught.value.fix is not None
    assert snapshot(tmp_path) == kept


@pytest.mark.parametrize("spelling", ["plain", "relative", "dots", "link", "folder link", "hard link", "record"])
def test_an_input_is_never_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    given = tmp_path / "data" / "x.json"
    given.parent.mkdir()
    write_file(given)
    (tmp_path / "link.json").symlink_to(given)
    (tmp_path / "other").symlink_to("data")
    os.link(given, tmp_path / "hard.json")
    monkeypatch.chdir(given.parent)
    target = {
        "plain": given,
        "relative": Path("x.json"),
        "dots": Path("../data/../data/./x.json"),
        "link": tmp_path / "link.json",
        "folder link": tmp_path / "other" / "x.json",
        "hard link": tmp_path / "hard.json",
        "record": tmp_path / "data" / "x.json",
    }[spelling]
    read = given.with_name("x.json.record.json") if spelling == "record" else given
    kept = snapshot(tmp_path)
    with pytest.raises(UserError, match="the output is an input"):
        write_file(target, "new", read)
    assert snapshot(tmp_path) == kept


def test_an_output_inside_an_input(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    for target in ("photos/x.json", "photos/deep/x.json", "link/x.json", "photos"):
        with pytest.raises(UserError, match="inside one|a folder lies"):
            write_file(tmp_path / target, "new", tmp_path / "photos")
    assert list((tmp_path / "photos").iterdir()) == []
    write_file(tmp_path / "beside.json", "new", tmp_path / "photos")


def test_a_change_while_the_command_runs_is_seen(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    output = Output(target, "test")
    with pytest.raises(NotOurs), output.write() as temporary:
        temporary.write_text("new")
        target.write_text("mine")
    assert target.read_text() == "mine" and list(tmp_path.iterdir()) == [target]


def test_a_file_that_is_what_would_be_made(tmp_path: Path) -> None:
    """A committed file has no need of its record, for commands that say so."""
    target = tmp_path / "x.json"
    for content, at_once in (("made", True), ("other", False)):
        target.write_text(content)
        with pytest.raises(NotOurs), Output(target, "test", at_once=at_once).write() as temporary:
            temporary.write_text("made")
    target.write_text("made")
    with Output(target, "test", at_once=False).write() as temporary:
        temporary.write_text("made")
    write_file(target, "new")


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_other_files(tmp_path: Path) -> None:
    target = tmp_path / "data"
    write_folder(target)
    (target / "thesis.tex").write_text("mine")
    (target / "images" / "photo.png").write_text("mine")
    write_folder(target, "other", NAMES[1:])
    names = sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())
    assert names == ["all.json", "images/2.png", "images/photo.png", "record.json", "thesis.tex"]
    assert (target / "all.json").read_text() == "other all.json"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recorded", [True, False])
def test_a_folder_with_another_file_is_left_alone(tmp_path: Path, name: str, recorded: bool) -> None:
    """Also if that file would only be removed."""
    if recorded:
        write_folder(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    kept = snapshot(tmp_path)
    for names in (NAMES, tuple(one for one in NAMES if one != name)) if recorded else (NAMES,):
        with pytest.raises(NotOurs, match=name if recorded else "the folder holds other files"):
            write_folder(tmp_path, "other", names)
    assert snapshot(tmp_path) == kept


def test_a_new_file_beside_ours_is_not_ours(tmp_path: Path) -> None:
    write_folder(tmp_path, names=NAMES[1:])
    (tmp_path / NAMES[0]).write_text("mine")
    kept = snapshot(tmp_path)
    with pytest.raises(NotOurs, match=NAMES[0]):
        write_folder(tmp_path)
    output = Output(tmp_path, "test", names=NAMES[1:])
    with pytest.raises(NotOurs, match=NAMES[0]), output.write() as temporary:
        (temporary / "images").mkdir()
        (temporary / NAMES[0]).write_text("made, and not known before")
    assert snapshot(tmp_path) == kept


def test_a_folder_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    write_folder(tmp_path / "data")
    write_folder(tmp_path / "data", "other")
    assert (tmp_path / "data").is_symlink() and (tmp_path / "disk" / "all.json").read_text() == "other all.json"


def test_a_record_names_no_files_elsewhere(tmp_path: Path) -> None:
    """A folder from somebody else cannot have a file removed that lies outside."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    target = tmp_path / "data"
    for name in ("../mine", str(mine), "images/../../mine"):
        target.mkdir(exist_ok=True)
        record = {"made_by": "ltpipe test", "files": {name: sha256_file(mine)}}
        (target / "record.json").write_text(json.dumps(record))
        with pytest.raises(NotOurs, match="the record is not one of"):
            write_folder(target)
    assert mine.read_text() == "mine"


def test_a_failed_command_leaves_what_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    kept = snapshot(tmp_path)
    for target in ("data", "new"):
        with pytest.raises(ZeroDivisionError), Output(tmp_path / target, "test", names=NAMES).write():
            raise ZeroDivisionError
    assert snapshot(tmp_path) == kept


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.os, "replace", full)
    for write in (write_folder, write_file):
        with pytest.raises(UserError, match="No space left"):
            write(tmp_path / write.__name__)


@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.parametrize("again", ["made", "other"])
def test_a_killed_command_starts_again(tmp_path: Path, step: int, again: str) -> None:
    """Killed at each of its renames, over older files; the next one finds all of them its own."""
    target = tmp_path / "data"
    write_folder(target, "old", (*NAMES, "more.json"))
    (target / "mine").write_text("mine")
    replace, calls = os.replace, 0

    def killed(source: object, place: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            kill_here()
        replace(source, place)  # type: ignore[arg-type]

    def work() -> None:
        os.replace = killed  # type: ignore[assignment]
        write_folder(target)

    assert ended(in_child(work)) == (-9 if step < 6 else 0)
    write_folder(target, again)
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    write_folder(tmp_path / "fresh", again)
    (tmp_path / "fresh" / "mine").write_text("mine")
    one, other = ({name: found[:1] for name, found in snapshot(tmp_path / d).items()} for d in ("data", "fresh"))
    assert one == other
