"""Stages of a project's own: modules named under ``stages`` in ``configs/pipeline.yaml``."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace

from ltpipe.config.catalogue import plugin_files
from ltpipe.config.settings import FILE
from ltpipe.config.yaml_positions import read_yaml
from ltpipe.errors import UserError
from ltpipe.pipeline.stage import Stage
from ltpipe.pipeline.stages import TABLE

# Rules and folders that are no stages.
_TAKEN = re.compile(r"all|all_.*|phase_.*|toy_data|datasets")


def add_own_stages() -> None:
    """Add the stages of the project in the working directory to the table.

    A module lists them as ``STAGES``. It is imported whenever the command line or the rules are read, so it should
    import nothing heavy at its top; ``run`` may stand in another module.

    Raises:
        UserError: A module cannot be found or imported, lists no stages, or gives one a name that is taken.
    """
    document = read_yaml(FILE) if FILE.is_file() else None
    modules = document.values.get("stages") or [] if document is not None else []
    for index, name in enumerate(modules if isinstance(modules, list) else [modules]):
        assert document is not None
        where = document.where(("stages", index), FILE)
        for stage in _stages(str(name), where):
            other = TABLE.get(stage.name)
            if other is not None and other.plugin == name:
                continue
            if other is not None or _TAKEN.fullmatch(stage.name) or not re.fullmatch(r"[a-z][a-z0-9_]*", stage.name):
                raise UserError(
                    "a stage cannot have this name",
                    where=where,
                    got=stage.name,
                    allowed="lower-case letters, digits and _, no name of another stage or target",
                )
            TABLE[stage.name] = replace(stage, plugin=str(name), module=stage.module or str(name))


def _stages(name: str, where: str) -> list[Stage]:
    plugin_files(name, where)
    try:
        found = list(importlib.import_module(name).STAGES)
    except Exception as error:
        raise UserError(
            "the module with stages cannot be used",
            where=where,
            got=f"{name}: {type(error).__name__}: {error}",
            allowed="a module with a list STAGES, see CONTRIBUTING.md",
        ) from error
    wrong = [one for one in found if not isinstance(one, Stage)]
    if wrong:
        raise UserError("STAGES lists something else than stages", where=where, got=f"{name}: {wrong[0]!r}")
    return found
