"""The JSON text of an annotation file as UTF-8, whatever its file looks like."""

from __future__ import annotations

import gzip
import json
import mmap
import re
import zlib
from pathlib import Path

from ltpipe.data.findings import Findings
from ltpipe.errors import UserError
from ltpipe.input_files import map_input

Text = mmap.mmap | memoryview | bytes
GZIP = b"\x1f\x8b"
# Strings are skipped as a whole, so that only bare words are found.
_BARE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:NaN|Infinity)', re.DOTALL)


def read_text(path: Path, findings: Findings) -> Text:
    """Return the content of a JSON file as UTF-8: mapped, or in memory if it is small or has to be unpacked or decoded.

    Args:
        path: The file: plain or gzip; UTF-8 with or without a byte order mark, UTF-16 or UTF-32.
        findings: Told of other encodings.

    Raises:
        UserError: The file is missing, empty, damaged, or in none of these encodings.
    """
    content: Text = map_input(path, "the annotation file")
    if content[:2] == GZIP:
        content = _unpacked(path, content)
    encoding = json.detect_encoding(bytes(content[:4]))
    if encoding == "utf-8-sig":
        content = memoryview(content)[3:]
    elif encoding != "utf-8":
        try:
            content = bytes(content).decode(encoding).encode()
        except UnicodeDecodeError as error:
            raise UserError("unreadable text", where=path, got=f"{encoding}: {error.reason}") from error
        findings.remark(f"file in {encoding.upper()} instead of UTF-8")
    if not bytes(content[:4096]).strip():
        raise UserError("the annotation file is empty", where=path)
    return content


def _unpacked(path: Path, content: Text) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError("damaged gzip file", where=path, got=error, fix="copy or download the file again") from error


def quoted_words(content: Text) -> bytes:
    """Return the text with ``NaN`` and ``Infinity``, which Python writes and JSON does not know, in quotes."""

    def quoted(match: re.Match[bytes]) -> bytes:
        word = match.group()
        return word if word.startswith(b'"') else b'"' + word + b'"'

    return _BARE.sub(quoted, bytes(content))
