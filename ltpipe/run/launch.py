"""Starting one stage in several processes: torchrun's launcher on one node, ``srun`` on the nodes of a Slurm job."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ltpipe.errors import PeerLost, UserError
from ltpipe.run import slurm
from ltpipe.run.cores import cores

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

FAILED = "LTPIPE_FAILED"


def first_to_fail(code: int, error: Exception | None = None) -> bool:
    """Whether no other process of this launch has failed yet; true for one of them only, and for a process alone.

    The others meet the same error, or lose their connection to the first, and say nothing.

    Args:
        code: Exit code of this process, for the launcher.
        error: Its error. With :class:`~ltpipe.errors.PeerLost` it is never the first.
    """
    if FAILED not in os.environ:
        return True
    if isinstance(error, PeerLost):
        return False
    with suppress(FileExistsError):
        with open(os.environ[FAILED], "x", encoding="utf-8") as file:
            file.write(str(code))
        return True
    return False


def processes_for(batch_size: int | None, nodes: int = 1) -> int:
    """Return the largest number of visible GPUs that divides each node's share of a batch; 1 without GPUs.

    Args:
        batch_size: Images of a batch; None: the processes share no batch.
        nodes: Nodes of the job.
    """
    import torch

    visible = max(torch.cuda.device_count(), 1)
    if batch_size is None:
        return visible
    return max((n for n in range(1, visible + 1) if batch_size % (n * nodes) == 0), default=1)


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
    os.environ.setdefault("OMP_NUM_THREADS", _threads_each(processes))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        failed = Path(folder) / "failed"
        os.environ[FAILED] = str(failed)
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "ltpipe.cli", *arguments)
        except ChildFailedError as error:
            return _exit_code(failed, error.failures.values(), processes)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            return _told(failed) or 128 + int(error.sigval)
        finally:
            os.environ.pop(FAILED, None)
    return 0


def _threads_each(processes: int) -> str:
    """Threads of each of the processes on this machine."""
    return str(max(1, cores() // processes))


def _told(failed: Path) -> int | None:
    """Exit code of the process that has told of its failure."""
    return int(failed.read_text(encoding="utf-8") or 1) if failed.exists() else None


def _exit_code(failed: Path, failures: Collection[ProcessFailure], processes: int) -> int:
    """Exit code of the process that has told of its failure; an error when one was killed and could not tell."""
    told = _told(failed)
    if told is not None:
        return told
    killed = [failure for failure in failures if failure.exitcode < 0]
    if not killed:
        return max(failure.exitcode for failure in failures)
    # torchrun ends the others with SIGTERM.
    first = min(killed, key=lambda failure: (failure.exitcode == -signal.SIGTERM, failure.timestamp))
    raise UserError(
        "a process of this stage was killed",
        where=f"process {first.local_rank} of {processes}",
        got=signal.Signals(-first.exitcode).name,
        fix="see whether memory ran out; the same command continues from the last saved state",
    )


def launch_on_nodes(arguments: Sequence[str], nodes: int, processes: int, folder: Path) -> int:
    """Run the command line as a step of this Slurm job, the same number of processes on each of its nodes.

    Args:
        arguments: Arguments of ``ltpipe``.
        nodes: Nodes of the job.
        processes: Processes per node, one per GPU.
        folder: Folder that all nodes see.

    Returns:
        Exit code of the process that failed first, 0 if none did. It has printed its error.

    Raises:
        UserError: A process was killed, or the step did not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failed = (folder / f".failed-{uuid.uuid4().hex[:8]}").absolute()
    layout = [f"--nodes={nodes}", f"--ntasks={nodes * processes}", f"--ntasks-per-node={processes}"]
    # The step shares the CPUs, memory and GPUs of the step that this process may be in.
    command = ["srun", "--overlap", "--cpu-bind=none", "--kill-on-bad-exit=1", *layout]
    environment = {
        **slurm.step_environment(),
        FAILED: str(failed),
        "WORLD_SIZE": str(nodes * processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": slurm.first_address(),
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads_each(processes)),
    }
    # srun ends its processes at once when it gets SIGTERM; Slurm itself tells them to save their state and stop.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        code = _run([*command, sys.executable, "-u", "-m", "ltpipe.cli", *arguments], environment)
        told = _told(failed)
        if code and told is not None:
            return told
    finally:
        signal.signal(signal.SIGTERM, before)
        failed.unlink(missing_ok=True)
    if code:
        raise UserError(
            "a process of this stage was killed, or srun could not start it",
            where=f"{nodes} nodes, {processes} processes each",
            got=f"exit code {code} of srun",
            fix="see srun's messages above; the same command continues from the last saved state",
        )
    return 0


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env=environment) as srun:
        try:
            return srun.wait()
        except BaseException:
            srun.terminate()
            raise


def join() -> None:
    """Take the rank that srun gave this process, if :func:`launch_on_nodes` started it."""
    if "WORLD_SIZE" in os.environ and "RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        os.environ.update(RANK=os.environ["SLURM_PROCID"], LOCAL_RANK=os.environ["SLURM_LOCALID"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
