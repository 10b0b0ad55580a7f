"""The documentation site: it builds without a warning, its reference is complete, its commands exist."""

from __future__ import annotations

import importlib.util
import logging
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ltpipe import cli
from ltpipe.config import catalogue
from ltpipe.config.checks import check_settings
from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import list_experiments, load_experiment
from ltpipe.metrics.table import METRICS
from ltpipe.pipeline.stages import TABLE
from tests.helpers.workspace import ROOT

LINE = re.compile(r"^    ((?:\w+=\S+ )*(?:\.venv/bin/)?(?:ltpipe|snakemake|make|python) .*)$", re.MULTILINE)
WRITTEN = re.compile(r"```yaml\n# configs/experiments/(\w+)\.yaml\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def generator() -> ModuleType:
    """The hook that makes the reference pages."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Among others: every page is in the navigation, every link and every anchor exists."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with caplog.at_level(logging.WARNING, "mkdocs"):
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site")))
    assert not [record.getMessage() for record in caplog.records]
    for page in ("index", "tutorial/index", "reference/configuration/index", "reference/methods/index", "python/index"):
        assert (tmp_path / "site" / f"{page}.html").is_file()
    assert "mermaid" in (tmp_path / "site" / "concepts" / "index.html").read_text(encoding="utf-8")


def blocks(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and those in it."""
    yield model
    for field in model.model_fields.values():
        nested = generator().nested_model(field.annotation)
        if nested is not None:
            yield from blocks(nested)


def test_every_key_has_a_row_with_a_meaning_and_an_example() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.*) \| (.+) \|$", generator().configuration(), re.MULTILINE)
    keys = [key for model in blocks(Experiment) for key in model.model_fields]
    assert sorted([*keys, "extends"]) == sorted(row[0] for row in rows)
    assert [key for key, value, default, meaning, example in rows if not (value and default and example)] == []
    bare = {key for key, _, _, meaning, example in rows if not meaning and "below" not in example}
    assert not bare


def test_examples_are_values_that_the_models_take() -> None:
    for name, value in generator().EXAMPLES.items():
        taken = 0
        for model in blocks(Experiment):
            field = model.model_fields.get(name)
            if field is not None and generator().nested_model(field.annotation) is None:
                with suppress(ValidationError):
                    TypeAdapter(Annotated[(field.annotation, field)]).validate_python(value)
                    taken += 1
        assert taken or name in ("ema", "keep", "validation"), name


def test_every_method_number_stage_and_command_has_its_place() -> None:
    methods = generator().methods()
    for slot, name in catalogue.catalogue():
        assert f"{{ #{slot}-{name} }}" in methods
    assert "arxiv.org/abs/2012.08548" in methods and "README of tztztztztz/eqlv2" in methods
    numbers = generator().metrics()
    assert all(f"| `{metric.key}` |" in numbers for metric in METRICS)
    stages, commands = generator().stages(), generator().commands()
    assert all(f"| `{name}` |" in stages and f"## ltpipe {name}\n" in commands for name in TABLE)
    assert all(f"## ltpipe {name}\n" in commands for name in cli.COMMANDS)


def typed() -> Iterator[tuple[str, str]]:
    """Lines of code blocks in the documentation that are commands, without comments; and where they stand."""
    for page in PAGES:
        text = re.sub(r" \\\n\s*", " ", page.read_text(encoding="utf-8"))
        for line in LINE.findall(text):
            yield re.sub(r"\s+#.*|\s+&&.*|\s+\|.*", "", line), page.name


def words_of(program: str) -> list[tuple[list[str], str]]:
    """Arguments of a program wherever it is called; optional ones count."""
    found = []
    for line, page in typed():
        words = [word for word in shlex.split(re.sub(r"[\[\]]", "", line)) if word != "..."]
        while "=" in words[0]:
            words.pop(0)
        if words[0].endswith(program):
            found.append((words[1:], f"{page}: {line}"))
    assert found
    return found


def test_every_command_is_one_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """With its options and their values."""
    parser = cli.parser()
    for words, where in words_of("ltpipe"):
        if words[0] in TABLE or words[0] in cli.COMMANDS:
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"{where}\n{capsys.readouterr().err}")
        else:
            assert words[0] in ("STAGE", "COMMAND"), where


def test_every_target_and_profile_exists() -> None:
    targets = {"all", "phase_1", "phase_2", "lst_phase_2", "STAGE", *(f"all_{stage}" for stage in TABLE)}
    for words, where in words_of("snakemake"):
        rest = iter(words)
        for word in rest:
            if word == "--profile":
                assert (ROOT / next(rest) / "config.yaml").is_file(), where
            elif word in ("--config", "--cores", "--report"):
                next(rest)
            elif not word.startswith("-"):
                assert word in targets or word.startswith("results/"), where
    for words, where in words_of("python"):
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1].split()[0]), where
        elif words[0] != "-c":
            assert (ROOT / words[0]).is_file(), where


def test_the_experiments_of_the_pages_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    written = {}
    for page in PAGES:
        found = WRITTEN.findall(page.read_text(encoding="utf-8"))
        assert not written.keys() & dict(found).keys()
        written |= dict(found)
    for name, content in written.items():
        (tmp_path / "configs" / "experiments" / f"{name}.yaml").write_text(content, encoding="utf-8")
    assert {"shapes", "mine", "growing", "higher_rate", "my_data"} <= written.keys()
    for name in written.keys() - {"my_data", "my_phases"}:  # those of the README have a test of their own
        check_settings(load_experiment(name), list_experiments())


def test_every_promise_about_a_cluster_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    text = page.partition("## When things die")[2].partition("## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    there = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`(test_\w+)`", row)
        assert names and all(f"def {name}(" in there for name in names), row


@pytest.mark.tutorial
@pytest.mark.timeout(5400)
def test_the_tutorial_as_it_is_written(tmp_path: Path) -> None:
    """From an empty folder: every marked command runs as it stands, the stages through Snakemake and by hand."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    for name in ("configs", "workflow", "local"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    ((name, content),) = WRITTEN.findall(text)
    (tmp_path / "configs" / "experiments" / f"{name}.yaml").write_text(content, encoding="utf-8")
    for command in re.findall(r"<!-- run.*? -->\n\n((?:    .*\n)+)", text):
        for line in command.splitlines():
            done = subprocess.run(line.strip(), shell=True, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "norcal" in (tmp_path / "results" / name / "report" / "report.html").read_text(encoding="utf-8")
