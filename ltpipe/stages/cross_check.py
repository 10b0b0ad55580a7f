"""``ltpipe evaluate --cross-check``: a stored evaluation, computed again by a second engine."""

from __future__ import annotations

from argparse import Namespace

from ltpipe.metrics.cross_check import cross_check
from ltpipe.pipeline.stages import CHECKPOINT
from ltpipe.stage_command import check_key, experiment_of


def run(arguments: Namespace) -> None:
    """Print what the second engine says.

    Raises:
        UserError: There is no such checkpoint or no evaluation of it, or a cell differs.
    """
    exp, paths = experiment_of(arguments)
    checkpoint = arguments.checkpoint
    check_key(exp, CHECKPOINT, checkpoint)
    for line in cross_check(paths.store("val"), paths.predictions(checkpoint), paths.tensors(checkpoint)):
        print(line)
