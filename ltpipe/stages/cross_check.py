"""``ltpipe evaluate --cross-check``: a stored evaluation, computed again by a second engine."""

from __future__ import annotations

from argparse import Namespace

from ltpipe.checkpoint_ids import measured_on
from ltpipe.metrics.cross_check import cross_check
from ltpipe.pipeline.stage_options import MEASUREMENT
from ltpipe.stage_command import check_key, experiment_of


def run(arguments: Namespace) -> None:
    """Print what the second engine says.

    Raises:
        UserError: There is no such checkpoint or no evaluation of it, or a cell differs.
    """
    exp, paths = experiment_of(arguments)
    measurement = arguments.checkpoint
    check_key(exp, MEASUREMENT, measurement)
    store = paths.store(measured_on(measurement)[1])
    for line in cross_check(store, paths.predictions(measurement), paths.tensors(measurement)):
        print(line)
