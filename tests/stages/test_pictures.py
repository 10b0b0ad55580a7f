"""The stage `pictures`: pages of the data, of what trainings see, and of complete checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from mmengine.config import Config

from ltpipe.engine.augmented import training_samples
from ltpipe.engine.inference import build_dataset
from ltpipe.report.highlights import DOZEN, read_highlights
from tests.helpers.pages import check_pages
from tests.helpers.tiny_project import run_stages

if TYPE_CHECKING:
    from conftest import Chain


def test_pages_of_an_experiment(chain: Chain, tmp_path: Path) -> None:
    """One page per complete checkpoint; an earlier run's further pages go."""
    paths = chain.copy(tmp_path)
    stages = [("evaluate", "base"), ("evaluate", "phase1"), ("evaluate", "phase2"), ("calibrate", "simcal")]
    run_stages(chain.exp, paths.results, *stages, ("evaluate", "simcal"), "pictures")
    folder = paths.folder("pictures")
    pages = check_pages(folder)
    names = {"index.html", "augmented.html", "examples_001.html"}
    assert names <= set(pages) and not any("phase1" in name or "base" in name for name in pages)
    assert {name for name in pages if name.startswith("detected_")} >= {"detected_simcal_001.html"}
    assert all(f"Training of {name}" in pages["augmented.html"] for name in ("base", "phase1", "phase2"))
    assert "drawn for" in pages["augmented.html"]
    shown = read_highlights(paths.highlights, "../pictures")
    assert 0 < len(shown) <= DOZEN and len({one.name for one in shown}) == len(shown)
    run_stages(chain.exp, paths.results, ("evaluate", "base"), ("evaluate", "phase1"), "report")
    report = paths.report.read_text()
    for one in shown:
        page, _, anchor = one.link.rpartition("/")[2].partition("#")
        assert f'<section id="{anchor}"><h2>{one.name}' in pages[page]
        assert f'<a href="{one.link}"><img' in report and "data:image/jpeg" in report
    assert "ltpipe pictures" not in report, "they are there already"
    (folder / "detected_simcal_009.html").write_text("of an earlier run")
    run_stages(chain.exp, paths.results, "pictures")
    assert set(check_pages(folder)) == set(pages)


def test_training_sees_what_is_shown(chain: Chain) -> None:
    """Pixels, boxes and classes of the samples are those that the training's own dataset gives."""
    for phase, checkpoint in ((0, "base"), (2, "phase2")):
        config = Config.fromfile(str(chain.paths.config(checkpoint))).train_dataloader.dataset
        dataset = build_dataset(config)
        samples = list(training_samples(chain.exp, chain.paths, phase, 6))
        for place, sample in enumerate(samples):
            item = dataset[place]
            gt = item["data_samples"].gt_instances
            np.testing.assert_array_equal(sample.image, item["inputs"].numpy().transpose(1, 2, 0))
            np.testing.assert_array_equal(sample.boxes, gt.bboxes.tensor.numpy())
            assert sample.names == [dataset.metainfo["classes"][i] for i in gt.labels.tolist()]
            assert dataset.store.image_ids[sample.row] == item["data_samples"].img_id
            assert (sample.drawn_for is None) == (checkpoint == "base")
    assert any(len(sample.boxes) for sample in samples)
