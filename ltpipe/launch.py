"""Starting one training in several processes, through torchrun's launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import suppress

from ltpipe.errors import UserError

FAILED = "LTPIPE_FAILED"


def first_to_fail() -> bool:
    """Whether no other process of this launch has failed yet; true for one of them only, and for a process alone.

    The others meet the same error, or lose their connection to the first, and say nothing.
    """
    if FAILED not in os.environ:
        return True
    with suppress(FileExistsError):
        os.close(os.open(os.environ[FAILED], os.O_CREAT | os.O_EXCL))
        return True
    return False


def processes_for(batch_size: int) -> int:
    """Return the largest number of visible GPUs that divides a batch; 1 without GPUs."""
    import torch

    return max(n for n in range(1, max(torch.cuda.device_count(), 1) + 1) if batch_size % n == 0)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run the command line once per process, each with its rank in the environment.

    Args:
        arguments: Arguments of ``ltpipe``.
        processes: Processes on this machine, one per GPU.

    Returns:
        Exit code of the process that failed first, 0 if none did. It has printed its error.

    Raises:
        UserError: A process was killed.
        KeyboardInterrupt: The launcher was interrupted.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[FAILED] = f"{folder}/failed"
            elastic_launch(config, sys.executable)("-u", "-m", "ltpipe.cli", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        raise UserError(
            "a training process was killed",
            where=f"process {failure.local_rank} of {processes}",
            got=signal.Signals(-failure.exitcode).name,
            fix="see whether memory ran out; the same command continues from the last saved state",
        ) from error
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        return 128 + int(error.sigval)
    finally:
        os.environ.pop(FAILED, None)
    return 0
