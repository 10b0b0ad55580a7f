"""A process that has imported everything and is forked for each command, so that a command costs its own work only.

``python server.py SOCKET`` listens on a Unix socket as long as the process that started it lives. A client sends the
arguments and the environment of a command and its open files; it gets the process id, and in the end the exit status. A
command of a client that is killed is killed, as it would be without this detour. The environment may ask for a fault
inside a command, see :mod:`trigger`.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback

import trigger


def work(request: dict) -> int:
    """Be the command; return its exit code."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    program, *arguments = request["argv"]
    sys.argv = [program, *arguments]
    try:
        if program == "snakemake":
            os.environ["FAULT_SNAKEMAKE"] = str(os.getpid())
            from snakemake.cli import main as snakemake

            snakemake(arguments)
        else:
            from ltpipe.cli import main

            sys.executable = request["python"]
            trigger.install(arguments)
            return main(arguments)
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


def main() -> None:
    """Import, then serve until killed."""
    import mmdet.models  # noqa: F401
    import snakemake.cli
    import snakemake.executors.local
    import snakemake.workflow
    import torch.distributed.launcher.api  # noqa: F401
    from mmengine.registry import init_default_scope

    import ltpipe.cli
    import ltpipe.engine.head_training
    import ltpipe.engine.shards
    import ltpipe.spec.workflow
    import ltpipe.stages.base
    import ltpipe.stages.calibrate
    import ltpipe.stages.distill
    import ltpipe.stages.evaluate
    import ltpipe.stages.lst
    import ltpipe.stages.report  # noqa: F401
    from ltpipe.spec.catalogue import catalogue

    init_default_scope("mmdet")
    # The project is tiny: states at every few steps and images, so that there is something to continue from.
    ltpipe.engine.shards.SIZE = 3
    ltpipe.engine.head_training.train_head.__kwdefaults__["save_every"] = 2
    # Both keep what they have read.
    catalogue()
    snakemake.cli.get_argument_parser()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sys.argv[1])
        listener.listen(32)
        listener.settimeout(5)
        parent = os.getppid()
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.setblocking(True)
            if not os.fork():
                listener.close()
                serve_one(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
