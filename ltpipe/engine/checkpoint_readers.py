"""Checkpoints that mmengine reads, such as those a detector starts from (``init_cfg``): read as data.

mmengine reads a file that its restricted reader refuses with the ordinary one, which runs it. The readers here take
the place of mmengine's for every address as soon as ``ltpipe.engine`` is imported, also where a ``config.py`` is rerun.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_torchvision_models

from ltpipe.checkpoints.torch_files import History, load_plain
from ltpipe.config.weight_files import SCHEMES, address, cached_file
from ltpipe.errors import UserError, unknown_name

# mmengine's for object stores; their files would need a client.
_STORES = (r"(\S+\:)?s3://", r"(\S+\:)?petrel://", "pavi://")


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a file; a run of mmengine itself, which kept its state there, continues from it.

    Raises:
        UserError: It is missing, damaged, or asks for more than data.
    """
    content = load_plain(Path(filename).expanduser(), map_location)
    hub = content.get("message_hub") if isinstance(content, dict) else None
    scalars = hub.get("log_scalars") if isinstance(hub, dict) else None
    if isinstance(scalars, dict):
        for name, kept in scalars.items():
            if isinstance(kept, History):
                scalars[name] = _history(kept.state, name, filename)
    return content


def _history(state: dict[str, Any], name: object, where: object) -> HistoryBuffer:
    try:
        return HistoryBuffer(state["_log_history"], state["_count_history"], state["max_length"])
    except Exception as error:  # what a file says is anything
        raise UserError("a history of logged values is damaged", where=f"{where}: {name}", got=repr(error)) from error


def load_from_address(filename: str, map_location: Any = None) -> Any:
    """Read what is behind an address or a name, from where torch keeps downloaded files.

    Raises:
        UserError: There is no such name, it cannot be downloaded, or the file asks for more than data.
    """
    content = load_plain(_fetched(filename), map_location)
    if filename.startswith("mmcls://"):
        state = content.get("state_dict", content)
        inner = {key: value for key, value in state.items() if key.startswith("backbone.")}
        return {"state_dict": {key.removeprefix("backbone."): value for key, value in inner.items()}}
    return content


def url_of(name: str, where: object) -> str | Path:
    """Return the address or file that start weights lie at, asking torchvision for its newer names.

    Raises:
        UserError: There is no such name.
    """
    found = address(name, where)
    if found is not None:
        return found
    known: dict[str, str] = get_torchvision_models()
    rest = name.partition("://")[2]
    if rest not in known:
        raise unknown_name("start weights of torchvision", rest, known, where=where)
    return known[rest]


def _fetched(name: str) -> Path:
    """Return the file behind an address or a name; the first process downloads it if it is not there yet."""
    url = url_of(name, "init_cfg")
    if isinstance(url, Path):
        return url
    file = cached_file(url)
    if is_main_process():
        _download(url, file, name)
    barrier()
    _download(url, file, name)  # on other nodes
    return file


def _download(url: str, file: Path, name: str) -> None:
    if file.is_file():
        return
    print(f"{name}: downloading {url} to {file}", flush=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            "the weights that the detector starts from cannot be downloaded",
            where=name,
            got=f"{url}: {error}",
            fix=f"download them on a machine with network, put the file to {file}, and run the stage again",
        ) from error


CheckpointLoader.register_scheme("", load_from_local, force=True)
CheckpointLoader.register_scheme([*(f"{s}://" for s in SCHEMES), *_STORES], load_from_address, force=True)
