"""Files that are downloaded once, whole or not at all, with a note of where from and their checksum beside them."""

from __future__ import annotations

import re
import shutil
import urllib.request
from pathlib import Path
from typing import TypedDict

from ltpipe.errors import UserError
from ltpipe.input_files import read_json_input
from ltpipe.run.checksums import checksum
from ltpipe.run.files import atomic_path, sha256_file, write_json

# Beginning of the SHA-256 in the names of PyTorch's and mmdet's files.
_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_TIMEOUT = 60.0


class _Note(TypedDict):
    address: str
    sha256: str


def fetch(address: str, file: Path) -> None:
    """Download a file, unless it is there already, and check it.

    A file that somebody put there is taken as it is, if its name has the checksum of its content or none.

    Args:
        address: ``http://`` or ``https://``.
        file: Where to.

    Raises:
        UserError: It cannot be downloaded, its content is not what its name or its note says, or another address has a
            file of the same name.
    """
    note = file.with_name(f"{file.name}.json")
    if not file.is_file():
        print(f"downloading {address} to {file}", flush=True)
        with atomic_path(file) as temporary:
            _download(address, temporary, file)
            found = sha256_file(temporary)
            _check_name(file, found, address)
        write_json(note, {"address": address, "sha256": found, "bytes": file.stat().st_size})
        return
    found = checksum(file)
    _check_name(file, found, address)
    if not note.is_file():
        return
    kept = read_json_input(note, "the note of a download", _Note)
    if kept["address"] != address:
        fix = "rename or remove the file and the note beside it, or name the file itself"
        raise UserError("a file of this name came from another address", where=file, got=kept["address"], fix=fix)
    if kept["sha256"] != found:
        fix = "remove the file and the note beside it: it is downloaded again"
        raise UserError("a downloaded file has changed", where=file, got=found, allowed=kept["sha256"], fix=fix)


def _download(address: str, temporary: Path, file: Path) -> None:
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as response, temporary.open("wb") as target:
            shutil.copyfileobj(response, target)
            wanted = response.headers.get("Content-Length")
        if wanted is not None and temporary.stat().st_size != int(wanted):
            raise OSError(f"{temporary.stat().st_size} of {wanted} bytes")
    except (OSError, ValueError) as error:
        raise UserError(
            "a checkpoint cannot be downloaded",
            where=address,
            got=error,
            fix=f"download it on a machine with network, put the file to {file}, and run the stage again",
        ) from error


def _check_name(file: Path, found: str, address: str) -> None:
    said = _IN_NAME.search(file.name)
    if said is not None and not found.startswith(said[1]):
        raise UserError(
            "the file is not the one that its name says",
            where=file, got=f"SHA-256 {found}", allowed=f"a SHA-256 that begins with {said[1]}",
            fix=f"remove it if it is there, and check {address}",
        )  # fmt: skip
