"""Files that are not what they should be: nothing in them runs, and the error says what is wrong."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltpipe import cli
from ltpipe.errors import UserError
from ltpipe.interop.safe_reading import read_foreign
from tests.helpers.tiny_project import command_line


class Harmful:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


CONTENT = {"state_dict": {"a.weight": torch.ones(2)}, "meta": {"author": Harmful()}}


def torch_zip(path: Path) -> None:
    torch.save(CONTENT, path)


def torch_legacy(path: Path) -> None:
    torch.save(CONTENT, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"a": np.ones(2)}, "b": Harmful()}, protocol=2))


def harmful_member(path: Path) -> None:
    """A zip archive whose data.pkl is replaced."""
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(Harmful(), 2) if name.endswith("data.pkl") else data)


def object_array(path: Path) -> None:
    """A numpy array of objects, whose elements are unpickled as well."""
    array = np.empty(1, object)
    array[0] = Harmful()
    path.write_bytes(pickle.dumps({"model": {"a": array}}, protocol=2))


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, plain_pickle, harmful_member, object_array])
def test_nothing_in_a_file_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], write: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bad.pth"
    write(file)
    assert cli.main(["convert", str(file), "--output", "new.pth", "--init"]) == 2
    message = capsys.readouterr().err
    asked = "numpy.dtype('O8')" if write is object_array else "mkdir"
    assert asked in message and str(file) in message and "Traceback" not in message
    assert not Path("executed").exists() and not Path("new.pth").exists()
    if write is not harmful_member:
        with open(file, "rb") as handle, pytest.raises(Exception, match="executed|persistent|Persistent|magic|hex"):
            pickle.load(handle) if write in (plain_pickle, object_array) else torch.load(handle, weights_only=False)
            os.mkdir("executed")  # the file does run when it is read without care


def buffer(legacy: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(500)}}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (buffer(legacy=False)[:900], ["unreadable checkpoint"]),
        (buffer(legacy=True)[:900], ["unreadable checkpoint"]),
        (pickle.dumps({"a": np.ones(100)})[:200], ["not a pickle of plain data"]),
        (b"", ["not a pickle of plain data"]),
        (b"<html>404</html>", ["not a pickle of plain data"]),
        (pickle.dumps([1, 2]), ["not a checkpoint", "list"]),
        (pickle.dumps({"a": 1}), ["no tensors"]),
        (pickle.dumps({"x.weight": np.ones(2)}), ["no known layout", "x.weight"]),
    ],
)
def test_wrong_files_have_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: list[str]
) -> None:
    file = tmp_path / "wrong.pth"
    file.write_bytes(content)
    assert cli.main(["convert", str(file), "--output", str(tmp_path / "new.pth"), "--init"]) == 2
    message = capsys.readouterr().err
    assert message.count("ltpipe convert:") == 1 and "\n\n" not in message
    assert all(word in message for word in [*words, str(file)])
    assert not (tmp_path / "new.pth").exists()


def test_a_process_of_its_own_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    code, text = command_line("convert", tmp_path / "none.pth", "--output", tmp_path / "new.pth", "--init")
    assert code == 2 and "cannot read the checkpoint" in text and "Traceback" not in text


def test_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    meta = {"lr": np.float64(0.1), "epoch": np.int64(3), "counts": np.arange(3), "ok": np.bool_(True)}
    for legacy in (False, True):
        torch.save(
            {"state_dict": {"module.a": torch.ones(2)}, "meta": meta},
            tmp_path / "a.pth",
            _use_new_zipfile_serialization=not legacy,
        )
        found = read_foreign(tmp_path / "a.pth")
        assert list(found.state) == ["a"] and found.meta["lr"] == 0.1 and found.meta["counts"].tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="the checkpoint is no file"):
        read_foreign(tmp_path)


def test_arrays_of_any_byte_order_and_shape_are_read(tmp_path: Path) -> None:
    whole = {"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.asfortranarray(np.ones((2, 2))), "c": np.array(3)}
    for protocol in (2, 3, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": whole}, protocol))
        state = read_foreign(tmp_path / "a.pkl").state
        assert {key: value.tolist() for key, value in state.items()} == {k: v.tolist() for k, v in whole.items()}


def test_arrays_of_python_2_are_read(tmp_path: Path) -> None:
    """Their numbers are text, as in detectron2's R-50.pkl."""
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x01\x85" + dtype
    content = b"\x80\x02}U\x05model}U\x01a" + array + b"\x89U\x04\x00\x00\x80?tbss."
    (tmp_path / "a.pkl").write_bytes(content)
    assert read_foreign(tmp_path / "a.pkl").state["a"].tolist() == [1.0]


def test_class_indices_become_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"category_id": 1, "img_id": [7, 9], "image_info_id": [0, 1], "isntance_count": 3}
    index = tmp_path / "class_to_imageid_and_inscount.pt"
    index.write_bytes(pickle.dumps({1: record}, protocol=3))
    annotations = tmp_path / "train.json"
    annotations.write_text('{"images": [], "categories": [{"id": 90, "name": "x"}], "annotations": []}')
    output = tmp_path / "index.json"
    assert cli.main(["convert", str(index), "--output", str(output)]) == 2
    assert "--annotations" in capsys.readouterr().err
    assert cli.main(["convert", str(index), "--output", str(output), "--annotations", str(annotations)]) == 0
    assert '"category_id": 90' in output.read_text()
