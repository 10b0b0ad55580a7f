"""A process that has imported everything and is forked for each command, so that a command costs its own work only.

``python fork_server.py SOCKET PID FD`` listens on a Unix socket, which lies in a folder of its own, as long as the
process PID lives, and says so by a byte in the open file FD. A client sends the arguments and the environment of a
command and its open files; it gets the process id, and in the end the exit status. A command of a client that is killed
is killed, as it would be without this detour. Commands are ``snakemake``, ``ltpipe``, ``python -c``, ``stub``, which is
the stub for ``ltpipe`` of the tests of the workflow, and ``serve SOCKET``: another server, which needs no imports and
ends with its client.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback

# Without this folder and those of PYTHONPATH, which commands have of their own.
SEARCHED = [folder for folder in sys.path[1:] if folder not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]


def work(request: dict) -> int:
    """Be the command; return its exit code."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    search = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [request["cwd"], *filter(None, search), *SEARCHED]  # as `python -m` has it
    program, *arguments = request["argv"]
    sys.argv = [program, *arguments]
    try:
        if request["prepare"]:
            importlib.import_module(request["prepare"]).prepare(program, arguments)
        if program == "serve":
            serve(arguments[0], os.getppid())
        elif program == "snakemake":
            from snakemake.cli import main as snakemake

            snakemake(arguments)
        elif program == "python":
            sys.argv = arguments[:1] + arguments[2:]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        elif program == "stub":
            from tests.workflow.stub_ltpipe import main as stub

            stub()
        else:
            from ltpipe.cli import main as ltpipe

            sys.executable = request["python"]
            return ltpipe(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve_one(connection: socket.socket) -> None:
    """Start one command and stay until it has ended; its exit status goes to the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not message:
        return  # only asked whether the server is there
    request = json.loads(message)
    child = os.fork()
    os.setpgid(child, child)
    if not child:
        connection.close()
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
            os.close(fd)
        sys.stdout, sys.stderr = (open(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        sys.exit(work(request))  # to the end of Python, where a program may hang
    for fd in fds:
        os.close(fd)
    connection.sendall(f"{child}\n".encode())
    ended = os.pidfd_open(child)
    gone = ended not in select.select([ended, connection], [], [])[0]
    if gone:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not gone:
        connection.sendall(f"{status}\n".encode())


def serve(path: str, parent: int, ready: int | None = None) -> None:
    """Answer clients on a socket as long as a process lives."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    end = os.pidfd_open(parent)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(32)
        if ready is not None:
            os.write(ready, b"x")
            os.close(ready)
        while end not in select.select([listener, end], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                listener.close()
                os.close(end)
                serve_one(connection)
                os._exit(0)
            connection.close()


# What stages would import while they run.
LATE = (
    "matplotlib.backends.backend_svg",
    "mmdet.engine",
    "mmdet.models",
    "mmdet.visualization",
    "multiprocessing.popen_fork",
    "pandas.io.formats.csvs",
    "pyarrow.pandas_compat",
    "snakemake.executors.local",
    "snakemake.workflow",
    "torch._dynamo",
    "torch.distributed.launcher.api",
    "torch.onnx",
    "torch.utils.serialization",
    "yapf.yapflib.yapf_api",
)


def load() -> None:
    """Import what the commands need, and fill what is read once."""
    import numpy as np
    import snakemake.cli
    from mmengine.registry import init_default_scope
    from PIL import Image

    import ltpipe.cli
    import ltpipe.pipeline.rules  # noqa: F401
    from ltpipe.config.catalogue import catalogue
    from ltpipe.metrics.kernels import decode_ends
    from ltpipe.pipeline.stages import TABLE

    for module in (*LATE, *(f"ltpipe.stages.{name}" for name in ("toy_data", *TABLE)), "tests.workflow.stub_ltpipe"):
        importlib.import_module(module)
    init_default_scope("mmdet")
    catalogue()
    snakemake.cli.get_argument_parser()
    Image.init()
    decode_ends(np.zeros(1, np.uint8), 0, 0, np.zeros(1, np.int64))  # numba starts with its first call
    gc.freeze()


if __name__ == "__main__":
    load()
    place, watched, started = sys.argv[1:]
    serve(place, int(watched), int(started))
    shutil.rmtree(os.path.dirname(place))
