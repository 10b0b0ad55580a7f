"""Run a command in a fork of the server, as if it ran here.

``python fork_client.py SOCKET PREPARE PYTHON PROGRAM ARGUMENTS...``: see :class:`tests.helpers.commands.Command`.
"""

import json
import os
import signal
import socket
import sys


def start(path, argv, env, cwd, fds, python="", prepare=""):
    """Start a command; return the connection and its process id."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = {"argv": argv, "env": env, "cwd": cwd, "python": python, "prepare": prepare}
    socket.send_fds(connection, [json.dumps(request).encode()], fds)
    reader = connection.makefile()
    return connection, reader, int(reader.readline())


def main():
    path, prepare, python, *argv = sys.argv[1:]
    if argv[:3] == ["-u", "-m", "ltpipe.cli"]:
        argv = ["ltpipe", *argv[3:]]  # torchrun starts its processes with sys.executable
    elif argv[0] == "-c":
        argv = ["python", *argv]
    _, reader, pid = start(path, argv, dict(os.environ), os.getcwd(), [0, 1, 2], python, prepare)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: os.killpg(pid, got))  # as terminals and Slurm do: to all its processes
    status = int(reader.readline() or "-9")
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main()
