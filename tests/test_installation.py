"""What the documentation says about the installation is what the Makefile has; the commands are those it says."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VARIABLES = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.MULTILINE))
GUIDE = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
# Read by the build of mmcv and by torch, not by make.
ENVIRONMENT = {"TORCH_CUDA_ARCH_LIST", "FORCE_CUDA"}
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "envs").glob("*.*")]


def test_every_variable_that_is_named_exists() -> None:
    named = {
        variable
        for file in [*TEXTS, ROOT / "Makefile"]
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(r"\bmake (run|test|install|lint)\b", line)
        for variable in re.findall(r"\b([A-Z][A-Z_]+)=", line)
    }
    assert {"TORCH_BUILD", "CORES", "PYTHON"} <= named
    assert named <= VARIABLES | ENVIRONMENT


def test_every_variable_is_explained() -> None:
    internal = {"OMP_WAIT_POLICY"}
    assert VARIABLES - internal == set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    targets = set(MAKEFILE.partition(".PHONY: ")[2].partition("\n")[0].split())
    for text in TEXTS:
        assert set(re.findall(r"(?m)^ *make ([a-z-]+)", text.read_text(encoding="utf-8"))) <= targets, text


def commands(folder: Path, *arguments: str) -> tuple[int, str]:
    """What ``make install`` would run in a fresh clone."""
    line = ["make", "--dry-run", "install", f"VENV={folder}", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "/usr/bin:/bin"})
    return done.returncode, done.stdout + done.stderr


def test_a_build_of_torch_is_asked_for_by_name(tmp_path: Path) -> None:
    code, text = commands(tmp_path / "venv", "TORCH_BUILD=cu130")
    assert code == 0 and re.search(r"install .*torch==[\d.]+\+cu130 *$", text, re.MULTILINE)
    assert re.search(r"--no-cache-dir --force-reinstall onedl-mmcv==", text), "pip keeps an mmcv for another torch"
    assert 'case "cu130" in cu*) ' in text


def test_without_a_build_pip_decides(tmp_path: Path) -> None:
    code, text = commands(tmp_path / "venv")
    assert code == 0 and re.search(r"torch==[\d.]+ *$", text, re.MULTILINE)
    assert "--no-cache-dir" not in text


def test_another_build_needs_a_fresh_environment(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    for found in ("", "cpu"):
        (tmp_path / "venv" / ".torch").write_text(f"{found}\n")
        code, text = commands(tmp_path / "venv", "TORCH_BUILD=cu130")
        assert code == 2 and "another build of torch" in text and "rm -r" in text
        assert commands(tmp_path / "venv", *([f"TORCH_BUILD={found}"] if found else []))[0] == 0


def test_versions_belong_together() -> None:
    pins = dict(re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "envs/constraints.txt").read_text(), re.MULTILINE))
    major, minor, patch = map(int, pins["torch"].split("."))
    assert (major, pins["torchvision"]) == (2, f"0.{minor + 15}.{patch}")
    assert f"torchvision {pins['torchvision']} belongs to torch {pins['torch']}" in GUIDE
    cuda = re.search(r"cuda-version=(\d+)\.(\d+)", (ROOT / "envs/gpu.yaml").read_text())
    builds = {*re.findall(r"TORCH_BUILD=cu(\d+)", (ROOT / "envs/gpu.yaml").read_text() + GUIDE)}
    assert cuda is not None and builds == {"".join(cuda.groups())}


@pytest.mark.parametrize(("built", "fits"), [("13.0", True), ("12.6", False), ("not available", False)])
def test_an_mmcv_without_the_cuda_of_torch_is_an_error(monkeypatch: pytest.MonkeyPatch, built: str, fits: bool) -> None:
    ops = SimpleNamespace(get_compiling_cuda_version=lambda: built)
    stubs = {"torch": SimpleNamespace(version=SimpleNamespace(cuda="13.0")), "mmcv": SimpleNamespace(ops=ops)}
    for name, stub in {**stubs, "mmcv.ops": ops}.items():
        monkeypatch.setitem(sys.modules, name, stub)
    check = MAKEFILE.partition("define CUDA_CHECK\n")[2].partition("endef")[0]
    if fits:
        exec(check, {})
        return
    with pytest.raises(SystemExit, match=f"mmcv was compiled for CUDA: {built}; torch is for 13.0"):
        exec(check, {})


def test_the_operators_are_compiled_as_python_was_but_for_a_debugger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags in the environment replace Python's own: the optimisation must not get lost."""
    text = MAKEFILE.partition("define COMPILER_FLAGS\n")[2].partition("endef")[0]

    def flags() -> list[str]:
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        return done.stdout.split()

    monkeypatch.delenv("CFLAGS", raising=False)
    assert [*str(sysconfig.get_config_var("CFLAGS")).split(), "-g0"] == flags() and "-O3" in flags()
    monkeypatch.setenv("CFLAGS", "-O2 -march=native")
    assert flags() == ["-O2", "-march=native", "-g0"]
    # As setuptools and torch put a command together.
    code = "from setuptools._distutils import ccompiler, sysconfig; c = ccompiler.new_compiler(); "
    code += "sysconfig.customize_compiler(c); print(*c.compiler_so)"
    monkeypatch.setenv("CFLAGS", " ".join(flags()))
    done = subprocess.run([sys.executable, "-c", "import setuptools; " + code], capture_output=True, text=True)
    assert "-O2" in done.stdout and "-g0" in done.stdout, done.stderr
