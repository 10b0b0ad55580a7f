"""``toy-data``: draw the data set of an experiment that asks for it."""

from __future__ import annotations

from ltpipe.config.experiment import Experiment
from ltpipe.data.toy import write_toy_data
from ltpipe.errors import UserError


def run(exp: Experiment) -> None:
    """Draw the images and annotations of ``dataset.generate``."""
    if exp.dataset.generate is None:
        raise UserError("the experiment has data of its own", where=f"{exp.file}: dataset.generate", got=None)
    write_toy_data(exp.dataset.folder, **exp.dataset.generate)
    print(f"toy data in {exp.dataset.folder}")
