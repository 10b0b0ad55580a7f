"""The graph of jobs: counts, named targets, what an edit reruns; Snakemake is real, the stages are a stub."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.cli import parse_set_resources

from ltpipe.pipeline.rules import Pipeline, growing
from tests.helpers.workspace import ROOT, Workspace

PHASES = {"distill_phase_1": 1, "lst_phase_1": 1, "distill_phase_2": 1, "lst_phase_2": 1}
SPLITS = {"split_phase_1": 1, "split_phase_2": 1}
FIRST_PHASE = {"split": 1, "base": 1, "split_phase_1": 1, "distill_phase_1": 1, "lst_phase_1": 1}
START = {"toy_data": 1, "index": 1}
AFTER_PHASES = {"features": 1, "calibrate": 1, "report": 1}
CHAIN, JOINT = "configs/experiments/chain.yaml", "configs/experiments/joint.yaml"


def test_the_whole_chain(empty: Workspace) -> None:
    expected = {
        **START,
        "validate": 2,
        "split": 2,
        "base": 2,
        **SPLITS,
        **PHASES,
        "evaluate": 5,
        **AFTER_PHASES,
        "report": 2,
    }
    assert empty.dry_run("all") == expected
    assert empty.dry_run() == expected, "all is the default target"


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("phase_1", {**START, "validate": 2, **FIRST_PHASE}),
        ("phase_2", {**START, "validate": 2, "split": 1, "base": 1, **SPLITS, **PHASES}),
        ("all_validate", {"validate": 2}),
        ("all_index", {**START, "validate": 2}),
        ("all_base", {**START, "validate": 2, "split": 2, "base": 2}),
        ("all_lst", {**START, "validate": 2, "split": 1, "base": 1, **SPLITS, **PHASES}),
        ("all_features", {**START, "validate": 2, "split": 1, "base": 1, **SPLITS, **PHASES, "features": 1}),
        ("results/chain/evaluate/phase1/metrics.json", {**START, **FIRST_PHASE, "evaluate": 1}),
    ],
)
def test_targets(empty: Workspace, target: str, jobs: dict[str, int]) -> None:
    assert empty.dry_run(target) == jobs


def test_lvis_without_data(empty: Workspace) -> None:
    jobs = empty.dry_run("all", "--config", "experiments=lvis_v05_lst,lvis_v1_lst")
    phases = Counter(name.rpartition("_")[0] for name in jobs if re.search(r"phase_\d$", name))
    assert phases == {"split_phase": 6, "distill_phase": 6, "lst_phase": 6}
    assert jobs["evaluate"] == 2 * 8 and jobs["index"] == 2 and "toy_data" not in jobs


def test_shipped_experiments(empty: Workspace) -> None:
    """Whatever is active in the repository starts from nothing; CamVid-LT finds its number of classes in its split."""
    active = yaml.safe_load((ROOT / "configs" / "pipeline.yaml").read_text(encoding="utf-8"))["experiments"]
    folder = ROOT / "configs" / "experiments"
    files = {file.stem: file for file in folder.rglob("*.yaml")}
    names = sorted(files)
    assert set(active) <= set(names)
    jobs = empty.dry_run("all", "--config", f"experiments={','.join(names)}")
    contents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files.values()]
    trained = sum(len(content.get("seeds", [0])) for content in contents if "share" not in content)
    assert jobs["validate"] == len(names) and jobs["base"] == trained


def test_nothing_is_queued_for_a_refused_experiment(tmp_path: Path) -> None:
    """A misspelt argument of the detector is found by building it, before the first job and in spite of keep-going."""
    workspace = Workspace(tmp_path / "refused", stub=False)
    (workspace.folder / "wrong.py").write_text(
        "_base_ = 'configs/detectors/mask_rcnn_toy.py'\nmodel = dict(backbone=dict(dept=18))\n"
    )
    file = workspace.folder / "configs" / "experiments" / "wrong.yaml"
    file.write_text("extends: toy_joint.yaml\ndetector: {config: wrong.py}\n")
    names = ("--config", "experiments=wrong")
    assert "validate" in workspace.dry_run("all", *names)
    said = workspace.snakemake("--cores", "1", "--keep-going", "all", *names, ok=False)
    assert "wrong is refused before anything is queued" in said and "dept" in said
    assert not (workspace.folder / "data").exists() and not (workspace.folder / "results" / "datasets").exists()


def test_a_second_stage_waits_for_the_first(empty: Workspace) -> None:
    file = empty.folder / "configs" / "experiments" / "second.yaml"
    start = "results/joint/base/model.pth"
    file.write_text(f"extends: joint.yaml\ndetector: {{load_from: {start}}}\nbase: {{trained: [fc_cls]}}\n")
    jobs = {**START, "validate": 1, "split": 2, "base": 2, "evaluate": 1, "report": 1}
    assert empty.dry_run("all", "--config", "experiments=second") == jobs
    assert empty.dry_run("results/second/base/model.pth", "--config", "experiments=second")["base"] == 2
    file.unlink()


def test_other_active_experiments_rerun_nothing(finished: Workspace) -> None:
    for names in ("joint", "chain,joint", "chain"):
        assert finished.dry_run("all", "--config", f"experiments={names}") == {}


def test_two_experiments_that_begin_alike(finished: Workspace) -> None:
    """What they share is there already, or made once; an edit of one of them ends the sharing."""
    file = finished.folder / "configs" / "experiments" / "alike.yaml"
    file.write_text("extends: chain.yaml\nshare: chain\nlst: {schedule: {lr: 0.003}}\nreport: {compare: []}\n")
    try:
        own = {"validate": 1, **PHASES, "split_phase_2": 1, "evaluate": 4, **AFTER_PHASES}
        del own["distill_phase_1"]
        assert finished.dry_run("all", "--config", "experiments=chain,alike") == own
        assert finished.dry_run("all", "--config", "experiments=alike") == own, "the other one needs not be active"
        assert finished.dry_run("all", "--config", "experiments=alike", "-R", "base")["base"] == 1
        with finished.edited(CHAIN, "split: {", "seed: 1\nsplit: {"):
            both = finished.dry_run("all", "--config", "experiments=chain,alike")
            assert both["base"] == 1 and both["lst_phase_1"] == 2, "the edit reaches both"
        file.write_text(f"{file.read_text()}seed: 1\n")
        assert finished.dry_run("all", "--config", "experiments=alike") == {**own, **PHASES, **SPLITS, "base": 1}
    finally:
        file.unlink()


def test_an_experiment_with_seeds(finished: Workspace) -> None:
    """Everything for each seed, what no seed decides once; targets and -R mean all seeds, a name one of them."""
    folder = finished.folder / "configs" / "experiments"
    (folder / "many.yaml").write_text("extends: chain.yaml\nseeds: [0, 1]\nreport: {compare: []}\n")
    (folder / "few.yaml").write_text("extends: joint.yaml\nseeds: [0, 1]\n")
    many, few = (("--config", f"experiments={name}") for name in ("many", "few"))
    calls = finished.folder / "calls.txt"
    before = calls.read_text()
    try:
        # Replay lists come behind the base training, which the seed decides.
        each = {"base": 2, **dict.fromkeys([*SPLITS, *PHASES], 2), "features": 2, "calibrate": 2, "evaluate": 8}
        assert finished.dry_run("all", *many) == {**each, "split": 1, "validate": 1, "report": 3}
        assert finished.dry_run("phase_1", *many) == {**dict.fromkeys(FIRST_PHASE, 2), "split": 1, "validate": 1}
        assert finished.dry_run("results/many.seed1/base/model.pth", *many) == {"split": 1, "base": 1}
        finished.snakemake("--cores", "2", "all", *few)
        assert not (finished.folder / "results/few.seed1/split").exists()
        assert finished.dry_run("all", *few, "-R", "base") == {"base": 2, "evaluate": 2, "report": 3}
        (folder / "few.yaml").write_text("extends: joint.yaml\nseeds: [0, 1, 2]\n")
        assert finished.dry_run("all", *few) == {"validate": 1, "base": 1, "evaluate": 1, "report": 2}
    finally:
        calls.write_text(before)
        for name in ("many", "few"):
            (folder / f"{name}.yaml").unlink()


def test_a_finished_chain_does_nothing(finished: Workspace) -> None:
    assert finished.dry_run("all") == {}
    calls = (finished.folder / "calls.txt").read_text().splitlines()
    # Experiments are checked before the first job, and once more by their rule.
    once = [call for call in calls if not call.startswith("validate")]
    assert len(once) == len(set(once)) == 21 and len(calls) == 21 + 2 * 2


# File, text, replacement, and exactly the jobs that run again.
FROM_PHASE_1 = {"lst_phase_1": 1, "distill_phase_2": 1, "lst_phase_2": 1, "evaluate": 3, **AFTER_PHASES}
FROM_BASE = {"base": 1, **PHASES, "evaluate": 4, **AFTER_PHASES}
AGAIN = "{annotations: data/toy/val.json, images: data/toy/val}"
EDITS = [
    (JOINT, "evaluate: {", "evaluate: {nms: 0.6, ", {"validate": 2, "evaluate": 5, "report": 2}),
    (CHAIN, "report: {", "evaluate: {nms: 0.6}\nreport: {", {"validate": 1, "evaluate": 4, "report": 1}),
    (CHAIN, "report: {", f"evaluate: {{sets: {{again: {AGAIN}}}}}\nreport: {{", {
        "validate": 1, "index_set": 1, "evaluate": 4, "report": 1}),
    (CHAIN, "report: {compare: [joint]}", "report: {}", {"validate": 1, "report": 1}),
    (CHAIN, "description: ", "description: really ", {"validate": 1, "report": 1}),
    (CHAIN, "lst:\n  schedule: {", "lst:\n  schedule: {gamma: 0.2, ", {"validate": 1, **FROM_PHASE_1}),
    (CHAIN, "lst:\n", "lst:\n  replay: {variant: cyclic}\n", {"validate": 1, **SPLITS, **FROM_PHASE_1}),
    (CHAIN, "lst:\n", "lst:\n  distill: {weight: 0.5}\n", {"validate": 1, **FROM_PHASE_1}),
    (CHAIN, "lst:\n", "lst:\n  distill: {teacher: none}\n", {
        "validate": 1, "lst_phase_1": 1, "lst_phase_2": 1, "evaluate": 3, **AFTER_PHASES}),
    (CHAIN, "features: {", "features: {tau: 0.5, ", {
        "validate": 1, "features": 1, "calibrate": 1, "evaluate": 1, "report": 1}),
    (CHAIN, "{type: simcal, ", "{type: simcal, inclusive: true, ", {
        "validate": 1, "calibrate": 1, "evaluate": 1, "report": 1}),
    (CHAIN, "calibrate:\n", "calibrate:\n  second: {type: simcal, schedule: {iterations: 9}}\n", {
        "validate": 1, "calibrate": 1, "evaluate": 1, "report": 1}),
    (CHAIN, "split: {", "seed: 1\nsplit: {", {"validate": 1, **FROM_BASE}),
    (CHAIN, "split: {", "split: {ignore_future_gt: true, ", {"validate": 1, **FROM_BASE}),
    (CHAIN, "split: {", "base: {checkpoint: none.pth}\nsplit: {", {"validate": 1, **FROM_BASE}),
    (CHAIN, "{type: simcal, ", "{type: simcal, checkpoint: none.pth, ", {
        "validate": 1, "calibrate": 1, "evaluate": 1, "report": 1}),
    (JOINT, "detector:", "seed: 1\ndetector:", {"validate": 2, **FROM_BASE, "base": 2, "evaluate": 5, "report": 2}),
    (JOINT, "generate: {seed: 0", "generate: {seed: 1", {
        **START, "validate": 2, "split": 2, **SPLITS, **FROM_BASE, "base": 2, "evaluate": 5, "report": 2}),
    (JOINT, "base:\n", "  load_from: x.pth\nbase:\n  trained: [fc_cls]\n", {
        "validate": 2, **FROM_BASE, "base": 2, "evaluate": 5, "report": 2}),
    ("configs/detectors/mask_rcnn_toy.py", "depth=18", "depth=34", {
        "validate": 2, **FROM_BASE, "base": 2, "evaluate": 5, "report": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "old", "new", "jobs"), EDITS, ids=[edit[2].strip().replace("\n", " ") for edit in EDITS]
)
def test_edits_rerun_exactly_what_reads_them(
    finished: Workspace, file: str, old: str, new: str, jobs: dict[str, int]
) -> None:
    with finished.edited(file, old, new):
        assert finished.dry_run("all") == jobs


def test_two_edits_at_once(finished: Workspace) -> None:
    """A job behind another one that reruns must still notice its own edit."""
    with (
        finished.edited(CHAIN, "{type: simcal, ", "{type: simcal, inclusive: true, "),
        finished.edited(CHAIN, "split: {", "seed: 1\nsplit: {"),
    ):
        assert finished.dry_run("all") == {"validate": 1, **FROM_BASE}


def test_touching_files_reruns_nothing(finished: Workspace) -> None:
    for file in (CHAIN, "Snakefile", "workflow/rules/stages.smk", "results/chain/split/split.json"):
        (finished.folder / file).touch()
    assert finished.dry_run("all", "--profile", "local") == {}


def test_one_phase_again(finished: Workspace) -> None:
    jobs = finished.dry_run("all", "-R", "lst_phase_2")
    assert jobs == {"lst_phase_2": 1, "evaluate": 2, **AFTER_PHASES}


def test_held_out_images_are_an_output_of_the_split(tmp_path: Path) -> None:
    """Only where a part asks for them; base training waits for them."""
    workspace = Workspace(tmp_path / "w")
    with workspace.edited(JOINT, "detector:", "model:\n  parts: [{type: fasa}]\ndetector:"):
        one = ("--config", "experiments=joint")
        workspace.snakemake("all_base", "--cores", "2", *one)
        file = workspace.folder / "results/joint/split/holdout.npz"
        assert file.is_file() and workspace.dry_run("all_base", *one) == {}
        file.unlink()
        assert workspace.dry_run(str(file.relative_to(workspace.folder)), *one) == {"split_holdout": 1}
    assert "split_holdout" not in workspace.dry_run("all_base", *one)


def test_rulegraph_shows_the_chain(empty: Workspace) -> None:
    graph = empty.snakemake("all", "--rulegraph")
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    edges = {(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", graph)}
    chain = [
        "toy_data",
        "index",
        "split",
        "base",
        "lst_phase_1",
        "lst_phase_2",
        "features",
        "calibrate",
        "evaluate",
        "report",
    ]
    assert set(zip(chain, chain[1:], strict=False)) <= edges
    assert ("base", "distill_phase_1") in edges and ("lst_phase_1", "distill_phase_2") in edges


def test_the_reports_are_named_at_the_end(finished: Workspace) -> None:
    pages = [finished.folder / "results" / name / "report" / "report.html" for name in ("joint", "chain")]
    text = finished.snakemake("--cores", "2", "all", "-R", "report")
    assert text[text.index("Reports:") :].splitlines()[1:3] == [f"  {page}" for page in pages]
    assert text.count("Reports:") == 1
    again = finished.program(sys.executable, "-m", "snakemake", "--cores", "2", "all")
    assert "Nothing to be done" in again, "and also where nothing had to run"
    assert again[again.index("Reports:") :].splitlines()[1:3] == [f"  {page}" for page in pages]
    assert "Reports:" not in finished.program(sys.executable, "-m", "snakemake", "--cores", "2", "-n", "all")


def test_report(finished: Workspace) -> None:
    finished.snakemake("all", "--report", "report.html")
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "groups_segm" in page and "rare, common and frequent" in page


def test_a_failed_job_leaves_its_resume_state(empty: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    command = workspace.folder / "bin" / "ltpipe"
    stub = command.read_text()
    failing = 'if [ "$1" = base ]; then mkdir -p results/chain/base/work; touch results/chain/base/work/a; exit 1; fi\n'
    command.write_text(stub.replace("exec", failing + "exec"))
    text = workspace.snakemake("all_base", "--cores", "1", "--config", "experiments=chain", ok=False)
    assert "base training of chain" in text
    assert (workspace.folder / "results/chain/base/work/a").exists()
    assert not (workspace.folder / "results/chain/base/model.pth").exists()
    command.write_text(stub)
    workspace.snakemake("all_base", "--profile", "workflow/profiles/ci", "--config", "experiments=chain")


def test_only_a_forced_rerun_forgets_where_a_stage_was_killed(empty: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w")
    chain = workspace.folder / "results" / "chain"
    state = [chain / stage / "work" / "state" for stage in ("base", "lst/phase1", "lst/phase2")]

    def left(*arguments: str) -> list[bool]:
        for file in state:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        workspace.snakemake("phase_1", "--cores", "2", "--config", "experiments=chain", *arguments)
        return [file.exists() for file in state]

    assert left() == [True, True, True]
    assert left("-n", "-R", "base") == [True, True, True]
    assert left("-R", "lst_phase_1") == [True, False, True]
    assert left("-R", "results/chain/base/model.pth") == [False, True, True]
    assert left("-F") == [False, False, False]


def test_mistakes_are_told_before_any_job(empty: Workspace) -> None:
    with empty.edited(CHAIN, "type: cosine", "type: cosin"):
        text = empty.snakemake("-n", "all", ok=False)
        assert "did you mean 'cosine'?" in text and "Traceback" not in text
    with empty.edited(CHAIN, "type: cosine", "type: linear"):
        assert "cosine similarities" in empty.snakemake("-n", "all", ok=False)
    with empty.edited(CHAIN, "compare: [joint]", "compare: [jiont]"):
        assert "did you mean 'joint'?" in empty.snakemake("-n", "all", ok=False)


@pytest.mark.parametrize("profile", ["slurm", "local", "workflow/profiles/ci"])
def test_profiles_are_found_from_the_root(empty: Workspace, profile: str) -> None:
    assert empty.dry_run("all", "--profile", profile)["base"] == 2


def test_gpu_rules_have_gpus_on_the_cluster(empty: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many phases there are; what is said of one phase alone comes before what is said of all."""
    profile = yaml.safe_load((ROOT / "workflow/profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    assert set(profile["default-resources"]) == {"slurm_partition", "slurm_account"}
    lines = [f"{rule}:{key}={value}" for rule, of in profile["set-resources"].items() for key, value in of.items()]
    given = parse_set_resources([*lines, "lst_phase_14:runtime=77"])
    text = (empty.folder / CHAIN).read_text()
    long = text.replace("base_classes: 12, step: 12", "base_classes: 8, step: 2")
    (empty.folder / CHAIN.replace("chain", "long")).write_text(long)
    monkeypatch.chdir(empty.folder)
    pipeline = Pipeline(["long"])
    pipeline.resources_by_stage(SimpleNamespace(overwrite_resources=given, overwrite_threads={}))
    rules = {rule.name for rule in pipeline.rules()}
    phases = {f"{kind}_phase_{k}" for kind in ("lst", "distill") for k in range(1, 15)}
    with_gpus = {rule for rule in rules if "gres" in given.get(rule, {})}
    assert with_gpus == phases | {"base", "features", "calibrate", "evaluate"}
    assert {given[f"lst_phase_{k}"]["runtime"].raw for k in range(1, 14)} == {given["base"]["runtime"].raw}
    assert given["lst_phase_14"]["runtime"].raw == 77 and given["lst_phase_14"]["gres"].raw == "gpu:1"


def test_the_profile_for_clusters_that_are_not_slurms(empty: Workspace) -> None:
    """It can be read without an executor plugin, asks for what the one for Slurm asks, and knows all phases, too."""
    text = empty.snakemake("-n", "all", "--profile", "workflow/profiles/generic", "--cores", "16")
    threads = re.findall(r"^Job \d+: (base|LST phase \d|teacher|RoI features) .*, (\d+) threads;", text, re.MULTILINE)
    assert {"base", "LST phase 2", "teacher", "RoI features"} <= {name for name, _ in threads}
    assert all(number == ("8" if name[0] in "bL" else "4") for name, number in threads), threads
    ours, slurm = (
        yaml.safe_load((ROOT / f"workflow/profiles/{name}/config.yaml").read_text(encoding="utf-8"))["set-resources"]
        for name in ("generic", "slurm")
    )
    for of in {id(of): of for of in slurm.values()}.values():  # some share theirs
        assert (of.pop("gres"), of.pop("cpus_per_task")) in (("gpu:1", 8), ("gpu:1", 4))
    assert ours == {stage: {"gpu": 1, **of} for stage, of in slurm.items()}


def test_every_rule_has_log_benchmark_and_resources() -> None:
    text = (ROOT / "workflow/rules/stages.smk").read_text(encoding="utf-8")
    rules = re.split(r"^ *rule(?: \w+)?:\n", text, flags=re.MULTILINE)[1:]
    assert len(rules) == 2, "all stages, and toy data"
    for rule in rules:
        order = [
            "output:\n",
            "log:\n",
            "benchmark:\n",
            "threads:",
            "resources:\n",
            "params:\n",
            "message:\n",
            "shell:\n",
        ]
        places = [rule.find(keyword) for keyword in order]
        assert -1 not in places and places == sorted(places), rule
        assert rule.count('"{params.command} > {log:q} 2>&1"') == 1, "the command is quoted by ltpipe"


def test_the_rules_of_all_stages() -> None:
    """Names, results and resources that people have written down elsewhere."""
    rules = {one.name: one for one in Pipeline(["toy", "toy_joint"]).rules()}
    phases = [f"{stage}_phase_{k}" for stage in ("split", "distill", "lst") for k in (1, 2)]
    once = ["validate", "index", "split", "base", "features", "calibrate", "evaluate", "pictures", "report"]
    assert sorted(rules) == sorted([*once, *phases])
    assert {name: (one.stage.threads, one.stage.mem_mb, one.stage.runtime) for name, one in rules.items()} == {
        "validate": (1, 1000, 10),
        "index": (1, 4000, 60),
        **dict.fromkeys(["split", "split_phase_1", "split_phase_2"], (1, 4000, 30)),
        **dict.fromkeys(["base", "lst_phase_1", "lst_phase_2"], (8, 16000, 1440)),
        **dict.fromkeys(["distill_phase_1", "distill_phase_2"], (4, 8000, 240)),
        "features": (4, 16000, 720),
        "calibrate": (4, 16000, 480),
        "evaluate": (4, 8000, 240),
        "pictures": (1, 8000, 120),
        "report": (1, 2000, 30),
    }
    assert list(map(str, rules["lst_phase_2"].outputs)) == [
        f"results/{{experiment}}/lst/phase2/{name}" for name in ("model.pth", "config.py", "stage.json")
    ]
    assert str(rules["index"].outputs[-1]) == "results/datasets/{dataset}/stage.json"
    assert str(rules["validate"].outputs[0]) == "results/{experiment}/experiment.lock.yaml"
    assert rules["calibrate"].wildcards == {"experiment": ["toy", "toy_joint"], "calibrator": ["simcal"]}


def test_the_rules_and_the_stages_agree_on_paths(finished: Workspace) -> None:
    """The stub writes where ``Paths`` says, and Snakemake found every declared output there."""
    assert (finished.folder / "results/chain/report/figures/groups_segm.png").exists()
    assert (finished.folder / "logs/chain/lst.phase1.log").exists()
    assert (finished.folder / "logs/chain/lst.phase1.benchmark.tsv").exists()


def test_growing_resources() -> None:
    assert [growing(10)(None, attempt) for attempt in (1, 2, 3, 9)] == [10, 20, 30, 40]


def test_a_dry_run_is_light(empty: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frameworks of seconds each stay out of what a user waits for at every call."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    said = empty.program(sys.executable, "-m", "snakemake", "-n", "--cores", "2", "all")
    imported = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "ltpipe.pipeline.rules" in imported
    assert not imported & {"torch", "mmcv", "mmdet", "matplotlib"}
