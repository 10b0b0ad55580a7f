"""``toy-data``: draw the data set of an experiment that asks for it."""

from __future__ import annotations

from ltpipe.config.experiment import Experiment
from ltpipe.data.toy import write_toy_data
from ltpipe.errors import UserError
from ltpipe.pipeline.digests import toy_data_digest
from ltpipe.pipeline.paths import Paths
from ltpipe.run.files import sha256_file, write_json
from ltpipe.run.outputs import RECORD, NotOurs
from ltpipe.run.records import read_json


def run(exp: Experiment, paths: Paths) -> None:
    """Draw the images and annotations of ``dataset.generate``, and note below the results that they are drawn.

    The note is what Snakemake takes for the output: it removes outputs before a job runs, and when a job fails, whoever
    made them. It stays as it is where nothing has changed, so that nothing runs again.

    Raises:
        UserError: The experiment has data of its own, or such data lie where the toy data would.
    """
    if exp.dataset.generate is None:
        raise UserError("the experiment has data of its own", where=f"{exp.file}: dataset.generate", got=None)
    try:
        write_toy_data(exp.dataset.folder, **exp.dataset.generate)
    except NotOurs as error:
        fix = f"data of your own need `dataset: {{generate: null}}` in {exp.file}; or give dataset.name another value"
        raise UserError(error.what, where=error.where, got=error.got, fix=f"{fix}. Nothing was changed") from error
    note = {
        "folder": exp.dataset.folder.as_posix(),
        "digest": toy_data_digest(exp),
        "record": sha256_file(exp.dataset.folder / RECORD),
    }
    if read_json(paths.drawn) != note:
        write_json(paths.drawn, note)
    print(f"toy data in {exp.dataset.folder}")
