"""Stands in for the command ``ltpipe`` in tests of the workflow: writes each stage's files without any work."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ltpipe.config.experiment import Experiment
from ltpipe.config.loading import load_experiment
from ltpipe.pipeline.digests import stage_digest, stage_slice, toy_data_digest
from ltpipe.pipeline.paths import Paths
from ltpipe.pipeline.stages import stage_inputs, stage_outputs
from ltpipe.run.checksums import checksum
from ltpipe.run.files import discard, write_json
from ltpipe.run.records import EARLIER, location
from ltpipe.run.stage_lock import is_done


def outputs(exp: Experiment, paths: Paths, stage: str, key: str | int | None) -> list[Path]:
    """Files that a stage writes before its record, one in a folder."""
    return [file if file.suffix else file / "groups_segm.png" for file in stage_outputs(exp, paths, stage, key)]


def inside(file: Path, record: Path) -> bool:
    """Whether a file lies where a record can name it."""
    return file.is_relative_to(record.parent)


def main() -> None:
    """Behave like ``ltpipe STAGE``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--experiment")
    parser.add_argument("--phase", type=int)
    parser.add_argument("--set")
    parser.add_argument("--name")
    parser.add_argument("--checkpoint")
    given = parser.parse_args()
    with open("calls.txt", "a", encoding="utf-8") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\n")
    exp = load_experiment(given.experiment)
    paths = Paths("results", exp)
    if given.stage == "toy-data":
        files = [exp.dataset.train.annotations, exp.dataset.val.annotations]
        record = None
        write_json(paths.drawn, {"digest": toy_data_digest(exp)})
    else:
        # Phase 0 of `split` is the stage itself.
        key = given.phase or given.set or given.name or given.checkpoint
        if is_done(exp, paths, given.stage, {} if key is None else {"key": key}):
            return
        files = outputs(exp, paths, given.stage, key)
        record = paths.record(given.stage, key)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{given.stage} {given.experiment}\n", encoding="utf-8")
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "digest": stage_digest(exp, given.stage, key),
            "settings": stage_slice(exp, given.stage, key),
            "inputs": {str(file): checksum(file) for file in stage_inputs(exp, paths, given.stage, key).values()},
            "place": location(paths),
            "outputs": {
                file.relative_to(record.parent).as_posix(): checksum(file) for file in files if inside(file, record)
            },
            "seconds": 0,
        }
        record.write_text(json.dumps(content), encoding="utf-8")
        discard(record.parent / EARLIER)


if __name__ == "__main__":
    main()
