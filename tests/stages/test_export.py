"""Exported detectors in mmdet's own test loop: our numbers, whatever order and ids the classes have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from mmengine.config import Config

from ltpipe.cli import main
from ltpipe.config.experiment import Experiment
from ltpipe.metrics.predictions import Predictions
from ltpipe.pipeline.paths import Paths
from tests.helpers.found_objects import annotate_with
from tests.helpers.tiny_project import copied, experiment, rewritten, run_stages, state_of

if TYPE_CHECKING:
    from conftest import Chain

IDS = [31, 0, 7, 3, 900, 12, 5, 44, 2]
NAMES = ["cat", "None", "01", "a, b", 'say "x"', "  lead", "{{ fileDirname }}", "{{ _base_.x }}", "bus"]
CHAIN = ["index", "split", "base", ("distill", 1), ("lst", 1), ("distill", 2), ("lst", 2), "features"]
CHECKPOINTS = ("base", "phase1", "phase2", "simcal")
# Runs mmdet's test loop on exported folders where ltpipe cannot be imported.
ALONE = """
import json, sys
import numpy as np
sys.modules["ltpipe"] = None
np.float = float  # the lvis package of the registry needs it; that of its repository does not
from mmengine.config import Config
from mmengine.runner import Runner
found = {}
for folder in sys.argv[2:]:
    config = Config.fromfile(f"{folder}/config.py")
    config.work_dir, config.load_from, config.test_dataloader.num_workers = f"{folder}/work", f"{folder}/model.pth", 0
    config.test_evaluator.outfile_prefix = f"{folder}/found"
    found[folder] = Runner.from_cfg(config).test()
with open(sys.argv[1], "w") as handle:
    json.dump(found, handle)
"""


# Has mmdet's inferencer run an exported folder where ltpipe cannot be imported.
INFERENCER = """
import sys
sys.modules["ltpipe"] = None
from mmdet.apis import DetInferencer
folder, image, drawn = sys.argv[1:]
detector = DetInferencer(f"{folder}/config.py", f"{folder}/model.pth", device="cpu", show_progress=False)
detector(image, out_dir=drawn, pred_score_thr=0.0, no_save_pred=False)
assert "classes" in detector.visualizer.dataset_meta, detector.visualizer.dataset_meta
"""


def sparse(part: str, content: dict[str, Any]) -> None:
    """Give the classes ids with gaps, in no order, and odd names; leave out what only the official files have."""
    order = [4, 0, 8, 2, 6, 1, 5, 3, 7]
    ids = {category["id"]: IDS[place] for place, category in enumerate(content["categories"])}
    for place, category in enumerate(content["categories"]):
        category.update(id=IDS[place], name=NAMES[place])
        category.pop("frequency", None)
    content["categories"] = [content["categories"][place] for place in order]
    for annotation in content["annotations"]:
        annotation["category_id"] = ids[annotation["category_id"]]
    for image in content["images"]:
        image["file_name"] = image.pop("coco_url", image["file_name"]).rsplit("/", 1)[-1]
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [ids[i] for i in image[key]]


@pytest.fixture(scope="module")
def measured(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Experiment, Paths]]:
    """A chain on classes with sparse ids, measured on another validation file under both protocols."""
    folder, made = tmp_path_factory.mktemp("sparse"), {}
    common: dict[str, Any] = dict(name="sparse", model={"classifier": {"type": "linear"}})
    parts = rewritten(chain.folder, folder / "first", sparse)
    exp = experiment(chain.folder, **common, dataset={"name": "sparse", **parts})
    evaluate = [("evaluate", checkpoint) for checkpoint in CHECKPOINTS]
    first = run_stages(exp, folder / "results", *CHAIN, ("calibrate", "simcal"), *evaluate)
    found = [Predictions.open(first.predictions(checkpoint)) for checkpoint in CHECKPOINTS]
    for fmt in ("lvis", "coco"):

        def annotate(part: str, content: dict[str, Any], fmt: str = fmt) -> None:
            sparse(part, content)
            if part == "val":
                annotate_with(found, content, IDS if fmt == "lvis" else [])

        parts = rewritten(chain.folder, folder / fmt, annotate)
        exp = experiment(chain.folder, **common, dataset={"name": "sparse", "format": fmt, **parts})
        made[fmt] = exp, run_stages(exp, copied(first.results, folder / f"results_{fmt}"), "index", *evaluate)
    return made


def exported(exp: Experiment, paths: Paths, checkpoint: str, folder: Path, *more: str) -> Path:
    arguments = ["--results", str(paths.results), "--checkpoint", checkpoint, "--output", str(folder / checkpoint)]
    assert main(["export", str(exp.file), *arguments, *more]) == 0
    # Everything the config names lies beside it, or is absolute.
    return (folder / checkpoint).rename(folder / f"moved {checkpoint}")


def compare(paths: Paths, checkpoint: str, folder: Path, theirs: dict[str, float]) -> None:
    """Compare the numbers, of which mmdet rounds away all but three decimals, and every detection."""
    ours = json.loads(paths.metrics(checkpoint).read_text())
    federated = ours["bbox"]["protocol"] == "lvis"
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75"}
    sizes = {"APs": "APs", "APm": "APm", "APl": "APl"}
    groups = {"APr": "APr", "APc": "APc", "APf": "APf"} if federated else {}
    if not federated:
        names, sizes = ({k: v.replace("AP", "mAP_").rstrip("_") for k, v in d.items()} for d in (names, sizes))
    for kind in ("bbox", "segm"):
        # mmdet's LVIS metric takes the area of the box for that of the mask.
        shown = {**names, **groups, **({} if federated and kind == "segm" else sizes)}
        for mine, name in shown.items():
            value = ours[kind][mine]
            assert theirs[f"{'lvis' if federated else 'coco'}/{kind}_{name}"] == pytest.approx(
                -1 if value is None else value, abs=5.1e-4
            ), (checkpoint, kind, mine)
    assert 0.05 < ours["bbox"]["AP"] < 0.95, "the case is not worth much"
    assert ours["bbox"]["counts"]["gt"] == len(json.loads((folder / "val.json").read_text())["annotations"])
    found = Predictions.open(paths.predictions(checkpoint))
    assert found.boxes is not None
    mine = sorted(zip(found.image_ids, found.category_ids, found.scores.round(6), found.boxes.tolist(), strict=True))
    rows = json.loads((folder / "found.bbox.json").read_text())
    other = sorted((r["image_id"], r["category_id"], round(r["score"], 6), r["bbox"]) for r in rows)
    assert [row[:2] for row in mine] == [row[:2] for row in other]
    np.testing.assert_allclose([r[3] for r in mine], [r[3] for r in other], atol=1e-3)


def test_mmdet_alone_measures_our_numbers(measured: dict[str, tuple[Experiment, Paths]], tmp_path: Path) -> None:
    known = {"base": 5, "phase1": 7, "phase2": 9}
    folders = {
        (fmt, name): exported(*made, name, tmp_path / fmt, "--plain")
        for fmt, made in measured.items()
        for name in known
    }
    output = tmp_path / "numbers.json"
    command = [sys.executable, "-c", ALONE, str(output), *map(str, folders.values())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads(output.read_text())
    for (fmt, name), folder in folders.items():
        classes = Config.fromfile(str(folder / "config.py")).test_dataloader.dataset.metainfo.classes
        assert len(classes) == known[name] and set(classes) <= set(NAMES)
        compare(measured[fmt][1], name, folder, numbers[str(folder)])


def compare_here(exp: Experiment, paths: Paths, checkpoint: str, folder: Path) -> None:
    """Compare an exported detector that needs ltpipe, in this process."""
    from mmengine.runner import Runner

    folder = exported(exp, paths, checkpoint, folder)
    config = Config.fromfile(str(folder / "config.py"))
    config.work_dir, config.load_from, config.test_dataloader.num_workers = f"{folder}/w", f"{folder}/model.pth", 0
    evaluators = config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]
    for evaluator in evaluators:
        evaluator.outfile_prefix = str(folder / "found")
    compare(paths, checkpoint, folder, Runner.from_cfg(config).test())


def test_a_calibrated_detector_measures_our_numbers(
    measured: dict[str, tuple[Experiment, Paths]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)
    for fmt, made in measured.items():
        compare_here(*made, "simcal", tmp_path / fmt)


def test_an_older_geometry_measures_its_full_boxes(
    measured: dict[str, tuple[Experiment, Paths]], chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float", float, raising=False)
    for fmt, (exp, paths) in measured.items():
        old = experiment(
            chain.folder,
            split=None,
            lst=None,
            model={"classifier": {"type": "linear"}},
            base={"checkpoint": str(paths.model("phase2"))},
            detector={"geometry": "mmdet1"},
            dataset=json.loads(exp.dataset.model_dump_json(exclude_none=True)),
        )
        made = run_stages(old, tmp_path / f"results_{fmt}", "index", "split", "base", ("evaluate", "base"))
        compare_here(old, made, "base", tmp_path / fmt)


def test_objects_without_masks_are_measured_by_their_boxes(
    measured: dict[str, tuple[Experiment, Paths]],
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Evaluators of masks cannot read them: masks have annotations of their own."""
    monkeypatch.setattr(np, "float", float, raising=False)
    for fmt, (exp, paths) in measured.items():
        content = json.loads(exp.dataset.val.annotations.read_text())
        for annotation in content["annotations"][::3]:
            annotation["segmentation"] = []
        (tmp_path / f"{fmt}.json").write_text(json.dumps(content))
        dataset = json.loads(exp.dataset.model_dump_json(exclude_none=True))
        dataset["val"]["annotations"] = str(tmp_path / f"{fmt}.json")
        mixed = experiment(
            chain.folder,
            split=None,
            lst=None,
            model={"classifier": {"type": "linear"}},
            base={"checkpoint": str(paths.model("phase2"))},
            dataset=dataset,
        )
        made = run_stages(mixed, tmp_path / f"results_{fmt}", "index", "split", "base", ("evaluate", "base"))
        compare_here(mixed, made, "base", tmp_path / fmt)
        segm = json.loads(made.metrics("base").read_text())["segm"]
        masks = json.loads((tmp_path / fmt / "moved base" / "val_masks.json").read_text())["annotations"]
        assert segm["counts"]["gt"] == len(masks) and segm["counts"]["gt_without_mask"] > 0
        without = len(content["annotations"][::3])
        assert f"{without} objects without a mask are only in val.json" in capsys.readouterr().out


def test_an_exported_detector_comes_back(
    measured: dict[str, tuple[Experiment, Paths]], chain: Chain, tmp_path: Path
) -> None:
    """With ids and names in the file, with names as mmdet writes them, and with nothing: ids are in no order."""
    exp, paths = measured["lvis"]
    folder = exported(exp, paths, "phase2", tmp_path)
    content = torch.load(folder / "model.pth", weights_only=True)
    names = content["meta"]["dataset_meta"]
    for number, meta in enumerate((content["meta"], {"dataset_meta": names}, {"CLASSES": names["classes"]}, {})):
        file, back = tmp_path / f"{number}.pth", tmp_path / f"back{number}.pth"
        torch.save({"state_dict": content["state_dict"], "meta": meta}, file)
        said = ["--loss", "cross_entropy", "--classifier", "linear", "--mask", "fcn"]
        classes = ["--classes", str(paths.statistics("train"))]
        assert main(["convert", str(file), "--output", str(back), *classes, *said]) == 0
        one_shot: dict[str, Any] = {"split": None, "lst": None, "model": {"classifier": {"type": "linear"}}}
        dataset = json.loads(exp.dataset.model_dump_json(exclude_none=True))
        again = experiment(chain.folder, **one_shot, dataset=dataset, base={"checkpoint": str(back)})
        made = run_stages(again, tmp_path / "results", *([] if number else ["index", "split"]), "base")
        one, other = state_of(made.model("base")), state_of(paths.model("phase2"))
        assert one.keys() <= other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    run_stages(again, tmp_path / "results", ("evaluate", "base"))
    ours, before = (json.loads(file.read_text()) for file in (made.metrics("base"), paths.metrics("phase2")))
    assert ours["segm"]["AP"] == before["segm"]["AP"] and ours["bbox"]["APr"] == before["bbox"]["APr"]


def test_only_what_the_experiment_measures(
    measured: dict[str, tuple[Experiment, Paths]], chain: Chain, tmp_path: Path
) -> None:
    exp, paths = measured["coco"]
    content = json.loads(exp.model_dump_json(exclude_none=True))
    boxes = experiment(chain.folder, **content | {"evaluate": {"iou_types": ["bbox"]}})
    config = Config.fromfile(str(exported(boxes, paths, "base", tmp_path) / "config.py"))
    assert config.test_evaluator.metric == ["bbox"]


def test_mmdets_inferencer_runs_it(measured: dict[str, tuple[Experiment, Paths]], tmp_path: Path) -> None:
    """As it is, without ltpipe: it finds what ltpipe finds, draws it, and knows the classes."""
    exp, paths = measured["lvis"]
    folder = exported(exp, paths, "base", tmp_path, "--plain")
    found = Predictions.open(paths.predictions("base"))
    image = json.loads(exp.dataset.val.annotations.read_text())["images"][0]
    file = Path(exp.dataset.val.images) / image["file_name"]
    command = [sys.executable, "-c", INFERENCER, str(folder), str(file), str(tmp_path / "drawn")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "drawn" / "vis").glob(file.name))
    theirs = json.loads((tmp_path / "drawn" / "preds" / f"{file.stem}.json").read_text())
    written = json.loads((folder / "val.json").read_text())["categories"]
    rows = np.flatnonzero(found.image_ids == image["id"])
    ours = sorted(zip(found.category_ids[rows].tolist(), found.scores[rows].tolist(), strict=True))
    labels = [written[label]["id"] for label in theirs["labels"]]
    assert len(rows) and [i for i, _ in ours] == sorted(labels)
    assert [s for _, s in ours] == pytest.approx([s for _, s in sorted(zip(labels, theirs["scores"], strict=True))])


def test_mmdets_inferencer_runs_what_needs_ltpipe(
    measured: dict[str, tuple[Experiment, Paths]], tmp_path: Path
) -> None:
    from mmdet.apis import DetInferencer

    exp, paths = measured["lvis"]
    folder = exported(exp, paths, "simcal", tmp_path)
    image = min(Path(exp.dataset.val.images).iterdir())
    inferencer = DetInferencer(str(folder / "config.py"), str(folder / "model.pth"), device="cpu", show_progress=False)
    found = inferencer(str(image), out_dir=str(tmp_path / "drawn"), pred_score_thr=0.0)["predictions"][0]
    assert len(found["labels"]) > 0 and inferencer.model.dataset_meta["palette"] == "random"
    written = json.loads((folder / "val.json").read_text())
    assert [c["name"] for c in written["categories"]] == list(inferencer.model.dataset_meta["classes"])
    assert list((tmp_path / "drawn").rglob(image.name))
