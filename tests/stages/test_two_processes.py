"""One training in one process and in two: the same images, RoIs and, where they count the same RoIs, the same losses.

mmdet divides losses by the RoIs of a process and LST's distillation by its boxes. So the curves agree to rounding where
every image gives as many, or where losses are averaged over the whole batch; normalisation has to be frozen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ltpipe.config.experiment import Experiment
from ltpipe.engine.hooks import StepSeedHook
from ltpipe.engine.roi_sampling import SeededSampler
from ltpipe.errors import UserError
from ltpipe.pipeline.paths import Paths
from ltpipe.run.changes import damages
from ltpipe.run.cores import VARIABLE
from ltpipe.run.launch import FAILED, launch_on_nodes
from tests.helpers.commands import PYTHON
from tests.helpers.tiny_project import (
    assert_same_state,
    command_line,
    command_lines,
    experiment,
    run_stages,
    state_of,
    together,
    torchrun,
)

if TYPE_CHECKING:
    from conftest import Chain

Step = dict[str, Any]
SCHEDULE = {"schedule": {"iterations": 4, "batch_size": 4, "lr": 0.01, "warmup_iterations": 0}}


def recorded(exp: Experiment, paths: Paths, stage: Any, processes: int, log: Path) -> list[Step]:
    """Train; return per iteration the images, the sampled RoIs and the mean losses of all processes."""
    log.mkdir()

    def work() -> None:
        steps: list[Step] = []
        seed, sample = StepSeedHook.before_train_iter, SeededSampler.sample

        def before(self: Any, runner: Any, *rest: Any, **more: Any) -> None:
            batch = more["data_batch"] if "data_batch" in more else rest[1]
            images = [(s.img_id, s.flip) for s in batch["data_samples"]]
            steps.append({"images": images, "rois": []})
            seed(self, runner, *rest, **more)

        def sampled(self: Any, *arguments: Any, **more: Any) -> Any:
            found = sample(self, *arguments, **more)
            steps[-1]["rois"].append((self.salt, found.pos_inds.tolist(), found.neg_inds.tolist()))
            return found

        def after(self: Any, runner: Any, *rest: Any, **more: Any) -> None:
            outputs = more["outputs"] if "outputs" in more else rest[2]
            steps[-1]["losses"] = {name: float(value) for name, value in outputs.items() if "loss" in name}

        StepSeedHook.before_train_iter, SeededSampler.sample = before, sampled  # type: ignore[method-assign]
        StepSeedHook.after_train_iter = after  # type: ignore[method-assign]
        run_stages(exp, paths.results, stage)
        torch.save(steps, log / os.environ["RANK"])

    together(work, processes)
    ranks = [torch.load(log / str(rank), weights_only=True) for rank in range(processes)]
    return [merged(parts) for parts in zip(*ranks, strict=True)]


def merged(parts: tuple[Step, ...]) -> Step:
    """Put the parts of an iteration together: images in batch order, the draws of each sampler, mean losses."""
    assert len({tuple(sorted(part["losses"])) for part in parts}) == 1, "every process reports the same losses"
    rois = [draw for part in parts for draw in part["rois"]]
    return {
        "images": [image for part in parts for image in part["images"]],
        "rois": {salt: [draw[1:] for draw in rois if draw[0] == salt] for salt in (0, 1)},
        "losses": {name: sum(part["losses"][name] for part in parts) / len(parts) for name in parts[0]["losses"]},
    }


@pytest.mark.parametrize("stage", ["base", ("lst", 1)])
def test_two_processes_train_as_one(chain: Chain, tmp_path: Path, stage: Any) -> None:
    exp = experiment(
        chain.folder,
        detector={"config": str(chain.folder / "boxes.py")},
        base=SCHEDULE,
        lst={**SCHEDULE, "rois": {"num": 8}, "distill": {"teacher": "none"}},
    )
    runs, models = [], []
    for processes in (1, 2):
        paths = chain.copy(tmp_path / str(processes), exp)
        if stage != "base":
            run_stages(exp, paths.results, "base")
        runs.append(recorded(exp, paths, stage, processes, tmp_path / f"log{processes}"))
        models.append(state_of(paths.model("base" if stage == "base" else "phase1")))
    one, two = runs
    assert len(one) == len(two) == 4
    for step, (alone, shared) in enumerate(zip(one, two, strict=True)):
        assert alone["images"] == shared["images"] and len(alone["images"]) == 4
        assert alone["losses"] == pytest.approx(shared["losses"], rel=1e-4, abs=1e-5), step
    for alone, shared in zip(one[:1], two[:1], strict=True):
        assert alone["rois"] == shared["rois"] and len(alone["rois"][0]) == len(alone["rois"][1]) == 4
    for key, value in models[0].items():
        assert torch.allclose(value.float(), models[1][key].float(), atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize("average", ["process", "batch"])
def test_a_phase_with_masks_and_distillation(chain: Chain, tmp_path: Path, average: str) -> None:
    # Small steps: fresh rows of the cosine classifier are short, which multiplies rounding differences.
    lst = {"schedule": {**SCHEDULE["schedule"], "lr": 0.002}}
    exp = experiment(chain.folder, lst=lst, model={"loss_average": average})
    runs, models = [], []
    for processes in (1, 2):
        paths = chain.copy(tmp_path / str(processes), exp)
        runs.append(recorded(exp, paths, ("lst", 2), processes, tmp_path / f"log{processes}"))
        models.append(state_of(paths.model("phase2")))
    one, two = runs
    assert [step["images"] for step in one] == [step["images"] for step in two]
    assert one[0]["rois"] == two[0]["rois"]
    for name in ("loss_rpn_cls", "loss_cls", "loss_distill", "loss_mask"):
        assert one[0]["losses"][name] > 0 and two[0]["losses"][name] > 0
    assert one[0]["losses"]["loss_rpn_cls"] == pytest.approx(two[0]["losses"]["loss_rpn_cls"], rel=1e-5)
    same = [
        alone["losses"] == pytest.approx(shared["losses"], rel=1e-4, abs=1e-5)
        for alone, shared in zip(one, two, strict=True)
    ]
    if average == "batch":
        assert same == [True] * 4
        for key, value in models[0].items():
            assert torch.allclose(value.float(), models[1][key].float(), atol=1e-4, rtol=1e-3), key
    else:
        assert not same[0], "images have different numbers of objects"


@pytest.mark.timeout(240)
def test_the_command_line_starts_several_processes(chain: Chain, tmp_path: Path, forked_python: None) -> None:
    """With a loader process each, which changes nothing."""
    exp = experiment(chain.folder, detector={"config": str(chain.folder / "boxes.py")}, base=SCHEDULE)
    paths, alone, unloaded = (chain.copy(tmp_path / name, exp) for name in ("two", "one", "without loaders"))
    code, text = command_line("base", exp.file, "--results", paths.results, "--processes", 2, **{VARIABLE: "6"})
    assert code == 0, text
    together(lambda: run_stages(exp, unloaded.results, "base"), 2)
    assert_same_state(paths.model("base"), unloaded.model("base"))
    run_stages(exp, alone.results, "base")
    assert '"processes": 2' in paths.record("base").read_text() and not paths.work("base").exists()
    one, two = state_of(alone.model("base")), state_of(paths.model("base"))
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-4, rtol=1e-3) for key in one)
    assert (
        alone.config("base").read_text().replace(str(alone.results), str(paths.results))
        == paths.config("base").read_text()
    ), "the config does not depend on the number of processes"


SRUN = """#!{interpreter}
import os, subprocess, sys
tasks, per_node = (int(a.split("=")[1]) for a in sys.argv if a.startswith("--ntasks"))
command = sys.argv[sys.argv.index("{python}"):]
assert not any(name.startswith("SLURM_STEP") for name in os.environ)
running = [
    subprocess.Popen(command, env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % per_node)}})
    for i in range(tasks)
]
sys.exit(max(one.wait() for one in running))
"""


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked_python: None) -> None:
    """Slurm's commands as in a job of two nodes, both of which are this machine."""
    programs = {
        "squeue": '#!/bin/sh\ncase $3 in *%D) echo 2;; *%N) echo "n[1-2]";; *RestartCnt) echo 0;; esac\n',
        "scontrol": '#!/bin/sh\n[ $2 = node ] && echo " NodeAddr=127.0.0.1 NodeHostName=n1" || printf "n1\\nn2\\n"\n',
        "srun": SRUN.format(interpreter=PYTHON, python=sys.executable),
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n1")


def test_two_nodes_train_as_one_process(chain: Chain, tmp_path: Path, two_nodes: None) -> None:
    exp = experiment(chain.folder, detector={"config": str(chain.folder / "boxes.py")}, base=SCHEDULE)
    paths, alone = chain.copy(tmp_path / "two", exp), chain.copy(tmp_path / "one", exp)
    code, text = command_line("base", exp.file, "--results", paths.results)
    assert code == 0, text
    assert (
        '"processes": 2' in paths.record("base").read_text()
        and '"job": "12"' in (paths.folder("base") / ".lock").read_text()
    )
    run_stages(exp, alone.results, "base")
    one, two = state_of(alone.model("base")), state_of(paths.model("base"))
    assert all(torch.allclose(one[key].float(), two[key].float(), atol=1e-4, rtol=1e-3) for key in one)
    assert not list(paths.folder("base").glob(".failed*"))


def test_a_step_that_fails(tmp_path: Path, two_nodes: None) -> None:
    srun, folder = tmp_path / "bin" / "srun", tmp_path / "base"
    srun.write_text(f"#!/bin/sh\nprintf 75 > ${FAILED}\nexit 137\n")
    assert launch_on_nodes(["base"], 2, 1, folder) == 75, "the first process to end decides"
    srun.write_text("#!/bin/sh\nexit 137\n")
    with pytest.raises(UserError, match="exit code 137 of srun"):
        launch_on_nodes(["base"], 2, 1, folder)
    assert list(folder.iterdir()) == []


def test_batches_that_cannot_be_divided_are_refused_once(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    exp = experiment(chain.folder, base={"schedule": {"batch_size": 3}})
    shared = {FAILED: str(tmp_path / "failed")}
    ended = command_lines([{**one, **shared} for one in torchrun(2)], "base", exp.file, "--results", paths.results)
    assert [code for code, _ in ended] == [2, 2]
    text = "".join(text for _, text in ended)
    assert text.count("multiple of the number of processes") == 1 and "Traceback" not in text, "one speaks for all"
    assert not damages(paths, "base", None), "the earlier result stays complete"


def test_stages_for_one_process_refuse_several(chain: Chain, tmp_path: Path) -> None:
    paths = chain.copy(tmp_path)
    code, text = command_line("split", chain.exp.file, "--results", paths.results, WORLD_SIZE="2")
    assert code == 2 and "runs in one process" in text, text
