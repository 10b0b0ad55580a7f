"""Files made to end the process that reads them, and files changed at random: each is refused, or read."""

from __future__ import annotations

import io
import pickle
import random
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_project import command_line, ended, in_child

from ltpipe.convert.reading import read_content
from ltpipe.errors import UserError

POINTER = b"C\x08AAAAAAAA"  # the bytes that an object's pointer would be made of
OBJECTS = b"cnumpy\ndtype\n(X\x01\x00\x00\x00OK\x00K\x01tR"
A = b"X\x01\x00\x00\x00a"
BYTES = b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8K\x00K\x01tR"
NUMBER = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8K\x00K\x01tR"
FLAGS = b"K\x08K\x01K\x3ftb"  # eight bytes, and the flags of an object
DTYPES = {
    "objects": OBJECTS,
    "bytes that become a structure": BYTES
    + (b"(K\x03X\x01\x00\x00\x00|N" + A + b"\x85}" + A + OBJECTS + b"K\x00\x86s" + FLAGS),
    "a number that becomes a structure": NUMBER
    + (b"(K\x03X\x01\x00\x00\x00|N" + A + b"\x85}" + A + OBJECTS + b"K\x00\x86s" + FLAGS),
    "a number with an object's flags": NUMBER + (b"(K\x03X\x01\x00\x00\x00ONNN" + FLAGS),
}


def scalar_of(dtype: bytes, core: str = "core") -> bytes:
    """Pickle of a numpy number of that type."""
    return (
        b"\x80\x03}X\x01\x00\x00\x00a" + f"cnumpy.{core}.multiarray\nscalar\n".encode() + dtype + POINTER + b"\x86Rs."
    )


def array_of(dtype: bytes) -> bytes:
    """Pickle of a numpy array of that type."""
    make = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01K\x01\x85"
    return b"\x80\x03}X\x01\x00\x00\x00a" + make + dtype + b"\x89" + POINTER + b"tbs."


def as_torch_file(content: bytes, path: Path) -> None:
    """Write a PyTorch file whose description of the tensors is that pickle, protocol 2 as torch's reader wants it."""
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    old = b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tR"
    content = content.replace(b"\x80\x03", b"\x80\x02").replace(POINTER, old).replace(b"C\x01b", b"U\x01b")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, content if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("build", [scalar_of, array_of])
@pytest.mark.parametrize("torch_file", [False, True])
def test_bytes_never_become_pointers(tmp_path: Path, dtype: str, build: object, torch_file: bool) -> None:
    content = build(DTYPES[dtype])  # type: ignore[operator]
    file = tmp_path / "crafted.pth"
    as_torch_file(content, file) if torch_file else file.write_bytes(content)

    def work() -> None:
        with pytest.raises(UserError, match=r"numpy\.") as caught:
            read_content(file)
        assert caught.value.where == file

    assert ended(in_child(work)) == 0


def test_convert_says_so_in_one_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "crafted.pth"
    file.write_bytes(scalar_of(DTYPES["objects"]))
    code, text = command_line("convert", file, "--output", tmp_path / "new.pth", "--init")
    assert code == 2 and str(file) in text and "numpy.dtype('O')" in text and "Traceback" not in text
    assert not (tmp_path / "new.pth").exists()


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """The reader in C makes room for as many objects as a file names, here two GiB."""
    file = tmp_path / "a.pkl"
    file.write_bytes(b"\x80\x02}r\x00\x00\x00\x08.")

    def work() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert read_content(file) == {}
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB

    assert ended(in_child(work)) == 0


def seeds() -> Iterator[bytes]:
    """Files as other repositories make them."""
    values = {
        "state_dict": {"a": torch.ones(3), "b": torch.zeros(2, 2, dtype=torch.int64)},
        "meta": {"n": np.float64(1), "c": np.arange(3), "ok": np.bool_(True), "text": "x"},
    }
    for zipped in (True, False):
        stream = io.BytesIO()
        torch.save(values, stream, _use_new_zipfile_serialization=zipped)
        yield stream.getvalue()
    plain = {"model": {"a": np.ones((2, 2), np.float32), "b": np.int64(3)}, "list": [1, 2.5, "x", b"y", None, (1,)]}
    for protocol in (0, 2, 3, 4):
        yield pickle.dumps(plain, protocol)


def changed(content: bytes, chance: random.Random) -> bytes:
    """Return the content with a few bytes changed, left out or repeated."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 2)):
        at, kind = chance.randrange(len(found)), chance.randrange(4)
        if kind == 0:
            found[at] = chance.randrange(256)
        elif kind == 1:
            found[at] = chance.choice(b"\x85\x86\x87Rb\x81(tlsue0.2chj}]K")
        elif kind == 2:
            del found[at : at + chance.randint(1, 8)]
        else:
            other = chance.randrange(len(found))
            found[at:at] = found[other : other + chance.randint(1, 24)]
    return bytes(found)


def repacked(content: bytes, chance: random.Random) -> bytes:
    """Change the pickle inside a zip archive, whose checksums stay right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, changed(data, chance) if name.endswith("data.pkl") else data)
    return stream.getvalue()


def test_no_file_ends_the_process(tmp_path: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        read = refused = 0
        for number, seed in enumerate(seeds()):
            for round_ in range(100):
                chance = random.Random(1000 * number + round_)
                zipped = seed.startswith(b"PK") and round_ % 2
                file = tmp_path / "changed.pth"
                file.write_bytes(repacked(seed, chance) if zipped else changed(seed, chance))
                try:
                    read_content(file)
                    read += 1
                except UserError:
                    refused += 1
        assert read > 20 and refused > 300, (read, refused)

    assert ended(in_child(work)) == 0
