"""``pip install`` from a source archive: everything is in it, and it runs outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.helpers.workspace import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the packages that pip has built from a source archive of a copy of the project."""
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.startswith(("ltpipe/", "snakemake_executor_plugin_ltslurm/")) or "/" not in name:
            if (ROOT / name).is_file():
                (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / "source" / name)
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=folder / "source", capture_output=True, text=True, check=True)
    (archive,) = folder.glob("ltpipe-*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "ltpipe/config/catalogue.json"} <= names
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(archive)]
    done = subprocess.run([*pip, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    wanted = {name for name in listed.splitlines() if name.startswith(("ltpipe/", "snakemake_executor_plugin_"))}
    found = {file.relative_to(installed).as_posix() for file in installed.rglob("*") if file.is_file()}
    assert {name for name in wanted if (ROOT / name).is_file()} <= found
    assert not any(name.startswith(("tests/", "benchmarks/", "docs/")) for name in found)


def test_it_runs_outside_of_the_repository(installed: Path, tmp_path: Path) -> None:
    """What reads files of the package: the catalogue of methods, the schema, Snakemake's plug-in."""
    code = """
import sys, ltpipe, snakemake_executor_plugin_ltslurm as plugin
assert ltpipe.__file__.startswith(sys.argv[1]) and plugin.__file__.startswith(sys.argv[1])
from ltpipe import cli
assert cli.main(["methods"]) == 0 and cli.main(["schema"]) == 0
"""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "norcal" in done.stdout and '"additionalProperties"' in done.stdout
    assert (installed / "bin" / "ltpipe").is_file()
