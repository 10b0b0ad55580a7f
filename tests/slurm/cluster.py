"""A throw-away Slurm on this machine for tests: munge, slurmctld and several slurmd, without systemd or cgroups.

Everything lies in one folder and on free loopback ports; :meth:`Cluster.stop` ends every process it started. By hand:
``python tests/slurm/cluster.py FOLDER`` starts one, prints the lines that make a shell use it, and stops it on Ctrl-C.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sinfo", "scontrol", "sbatch", "srun", "squeue", "scancel")
CLIENTS = ("srun", "sbatch", "squeue", "scontrol", "scancel", "sinfo", "sacct", "sacctmgr", "sshare")
DATABASE = ("slurmdbd", "mariadbd", "mariadb", "mariadb-install-db")
SBIN = os.pathsep.join(["/usr/local/sbin", "/usr/sbin", "/sbin"])


def missing(accounting: bool = False) -> str | None:
    """Say why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a local Slurm needs root"
    path = os.pathsep.join([os.environ["PATH"], SBIN])
    absent = [name for name in PROGRAMS + (DATABASE if accounting else ()) if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; an error names what did not happen in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.1)


class Cluster:
    """A Slurm cluster of virtual nodes.

    Partitions: ``cpu`` (default, all nodes), ``gpu`` (all nodes but the last; fake GPUs), ``lowcancel`` and
    ``lowrequeue`` (all nodes; jobs are cancelled or requeued when ``cpu`` needs their place).

    Args:
        folder: A new folder; its path must be short, since sockets lie in it.
        nodes: Number of nodes.
        cpus: CPUs that every node claims to have.
        gpus: GPUs of a node with GPUs.
        memory: MB that every node claims to have.
        accounting: Whether a slurmdbd with its own MariaDB keeps the accounts (``sacct``).
        max_time: Longest time of a job in the partitions ``cpu`` and ``gpu``.
        max_submit: How many jobs a user may have at once, which slurmctld enforces with its associations and QOS; needs
            ``accounting``. None: no limits are enforced.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 3,
        cpus: int = 4,
        gpus: int = 2,
        memory: int = 64000,
        accounting: bool = False,
        max_time: str = "1-0",
        max_submit: int | None = None,
    ) -> None:
        self.folder, self.nodes, self.cpus, self.gpus, self.memory = folder, nodes, cpus, gpus, memory
        self.accounting, self.max_time, self.max_submit = accounting, max_time, max_submit
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = _free_ports(nodes + 3)
        self.config = folder / "etc" / "slurm.conf"
        self.host = socket.gethostname().partition(".")[0]

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which Slurm's commands talk to this cluster."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        path = os.pathsep.join([str(self.folder / "bin"), kept["PATH"], SBIN])
        return {**kept, "PATH": path, "SLURM_CONF": str(self.config)}

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- start and stop ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write the configuration, start all daemons and wait until every node is idle."""
        for name in ("bin", "dev", "etc", "log", "run", "state", *(f"spool/node{i + 1}" for i in range(self.nodes))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._write_config()
        run, log = self.folder / "run", self.folder / "log"
        key = self.folder / "etc" / "munge.key"
        subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True, env=self.environment)
        munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={run}/munge.socket"]
        munge += [f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed"]
        self._spawn("munged", munge)
        wait_for((run / "munge.socket").exists, 10, "munged's socket")
        if self.accounting:
            self._start_database()
        self.begin("slurmctld")
        for number in range(1, self.nodes + 1):
            self.begin(f"node{number}")
        wait_for(self._idle, 60, "idle nodes")

    def begin(self, name: str) -> None:
        """Start a daemon, or one that was killed: ``slurmctld``, ``slurmdbd`` or ``node<i>``."""
        if name == "slurmctld":
            self._spawn(name, ["slurmctld", "-D", "-f", str(self.config)])
            wait_for(lambda: "is UP" in self.ask("scontrol", "ping"), 30, "an answer of slurmctld")
        elif name == "slurmdbd":
            self._spawn(name, ["slurmdbd", "-D"])
            wait_for(lambda: self._run("sacctmgr", "-n", "show", "cluster").returncode == 0, 60, "slurmdbd's answer")
        else:
            self._spawn(name, ["slurmd", "-D", "-N", name, "-f", str(self.config)])

    def kill(self, name: str) -> None:
        """Kill a daemon at once; slurmctld loses what it has not saved, which are up to five seconds."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def end(self, name: str) -> None:
        """End a daemon as an administrator does; slurmctld saves its state."""
        daemon = self.daemons.pop(name)
        daemon.terminate()
        daemon.wait(30)

    def clear(self, seconds: float) -> None:
        """Cancel all jobs and wait for their end, at most so long."""
        jobs = self.ask("squeue", "-h", "-o", "%A").split()
        if jobs:
            self._run("scancel", "--full", *set(jobs))
            wait_for(lambda: not self.ask("squeue", "-h").strip(), seconds, "end of all jobs")

    def repair(self, seconds: float = 90) -> None:
        """Start the daemons that were killed, cancel all jobs and wait until every node is idle."""
        for name in ("slurmctld", *(f"node{number}" for number in range(1, self.nodes + 1))):
            if name not in self.daemons:
                self.begin(name)
        self.clear(seconds)
        wait_for(self._idle, seconds, "idle nodes")

    def _idle(self) -> bool:
        return self.ask("sinfo", "-hN", "-pcpu", "-tidle").count("\n") == self.nodes

    def stop(self) -> None:
        """Cancel all jobs and end every process of the cluster."""
        controller = self.daemons.get("slurmctld")
        if controller is not None and controller.poll() is None:
            with suppress(TimeoutError):
                self.clear(8)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in reversed(self.daemons.values()):
            try:
                daemon.wait(8)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self.daemons.clear()
        for process in self.job_processes():
            os.kill(process, signal.SIGKILL)

    def job_processes(self) -> list[int]:
        """Step daemons and jobs of this cluster: they outlive slurmd by design. Known by their environment."""
        mark, found = f"SLURM_CONF={self.config}".encode(), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes().split(b"\0")
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            inside = name == "slurmstepd" or any(entry.startswith(b"SLURM_JOB_ID=") for entry in environment)
            if mark in environment and inside and int(process.name) != os.getpid():
                found.append(int(process.name))
        return found

    # ---- commands ----------------------------------------------------------------------------------------------------

    def ask(self, *command: str) -> str:
        """Return the standard output of a Slurm command; empty if it failed."""
        done = self._run(*command)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self, *states: str) -> list[str]:
        """Ids of jobs in these states, in the order of submission."""
        listed = self.ask("squeue", "-h", f"--states={','.join(states) or 'all'}", "-o", "%A")
        return sorted(set(listed.split()), key=int)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", "timeout")

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self.folder / "log" / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    # ---- configuration -----------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        settings = self._settings()
        with_gpus = f"node[1-{max(self.nodes - 1, 1)}]"
        lines = [f"{key}={value}" for key, value in settings.items()]
        for number in range(1, self.nodes + 1):
            gres = f" Gres=gpu:fake:{self.gpus}" if number < self.nodes or self.nodes == 1 else ""
            lines.append(
                f"NodeName=node{number} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={self.ports[number]}"
                f" CPUs={self.cpus} RealMemory={self.memory} State=UNKNOWN{gres}"
            )
        every = f"node[1-{self.nodes}] MaxTime={self.max_time} State=UP"
        lines += [
            f"PartitionName=cpu Default=YES PriorityTier=10 PreemptMode=off Nodes={every}",
            f"PartitionName=gpu PriorityTier=10 PreemptMode=off MaxTime={self.max_time} State=UP Nodes={with_gpus}",
            f"PartitionName=lowcancel PriorityTier=1 PreemptMode=cancel Nodes={every}",
            f"PartitionName=lowrequeue PriorityTier=1 PreemptMode=requeue Nodes={every}",
        ]
        self.config.write_text("\n".join(lines) + "\n")
        devices = self.folder / "dev"
        for number in range(self.gpus):
            # Slurm wants character devices: these are copies of /dev/null.
            os.mknod(devices / f"nvidia{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        gres = f"NodeName={with_gpus} Name=gpu Type=fake File={devices}/nvidia[0-{self.gpus - 1}]\n"
        (self.folder / "etc" / "gres.conf").write_text(f"AutoDetect=off\n{gres}")
        (self.folder / "etc" / "cgroup.conf").write_text("CgroupAutomount=no\n")
        for name in CLIENTS:
            # Snakemake's job step drops SLURM_CONF before it calls srun, so each command brings its own.
            program = shutil.which(name)
            if program is not None:
                shim = self.folder / "bin" / name
                shim.write_text(f'#!/bin/sh\nSLURM_CONF={self.config} exec {program} "$@"\n')
                shim.chmod(0o755)

    def _settings(self) -> dict[str, object]:
        folder = self.folder
        settings: dict[str, object] = {
            "ClusterName": "ltpipe",
            "SlurmctldHost": f"{self.host}(127.0.0.1)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={folder}/run/munge.socket",
            "SlurmctldPort": self.ports[0],
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool" / "%n",
            "SlurmctldPidFile": folder / "run" / "slurmctld.pid",
            "SlurmdPidFile": folder / "run" / "slurmd.%n.pid",
            "SlurmctldLogFile": folder / "log" / "slurmctld.log",
            "SlurmdLogFile": folder / "log" / "slurmd.%n.log",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SlurmdParameters": "config_overrides",
            "PropagateResourceLimits": "NONE",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "DefMemPerCPU": 500,
            "MailProg": "/bin/true",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": 2,
            "JobAcctGatherParams": "OverMemoryKill",
            "AccountingStorageType": "accounting_storage/none",
            "MinJobAge": 7200,  # tests ask about all their jobs at the end
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=5,bf_interval=5,batch_sched_delay=0,sched_min_interval=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "KillWait": 3,
            "SlurmdTimeout": 20,
            "ReturnToService": 2,
            "GresTypes": "gpu",
        }
        if self.accounting:
            settings |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": self.ports[-1],
                "AccountingStoragePass": folder / "run" / "munge.socket",
            }
        if self.max_submit is not None:
            settings["AccountingStorageEnforce"] = "associations,limits,qos"
        return settings

    def _start_database(self) -> None:
        """Start MariaDB and slurmdbd; slurmctld refuses to start before they answer."""
        folder, port, user = self.folder, self.ports[-2], "slurm"
        data, sock, password = folder / "db", folder / "run" / "maria.sock", secrets.token_hex(12)
        options = ["--no-defaults", "--user=root", f"--datadir={data}"]
        install = ["mariadb-install-db", *options, "--auth-root-authentication-method=socket", "--skip-test-db"]
        subprocess.run(install, check=True, env=self.environment, capture_output=True)
        network = [f"--socket={sock}", "--bind-address=127.0.0.1", f"--port={port}"]
        limits = ["--innodb-buffer-pool-size=64M", f"--pid-file={folder}/run/maria.pid"]
        self._spawn("mariadbd", ["mariadbd", *options, *network, *limits])
        client = ("mariadb", "--no-defaults", "-S", str(sock), "-e")
        wait_for(lambda: self._run(*client, "select 1").returncode == 0, 60, "MariaDB's answer")
        grant = (
            f"create user '{user}'@'127.0.0.1' identified by '{password}'; grant all on acct.* to '{user}'@'127.0.0.1'"
        )
        self._run(*client, f"create database acct; {grant}")
        config = folder / "etc" / "slurmdbd.conf"
        lines = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={folder}/run/munge.socket",
            "DbdHost": self.host,
            "DbdAddr": "127.0.0.1",
            "DbdPort": self.ports[-1],
            "SlurmUser": "root",
            "LogFile": folder / "log" / "slurmdbd.log",
            "PidFile": folder / "run" / "slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": port,
            "StorageUser": user,
            "StoragePass": password,
            "StorageLoc": "acct",
        }
        config.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
        config.chmod(0o600)
        self.begin("slurmdbd")
        if self.max_submit is not None:
            self._add_user()

    def _add_user(self) -> None:
        """Give this user an account, as an administrator does."""
        name = getpass.getuser()
        for line in (
            "add cluster ltpipe",
            "add account lab",
            f"add user {name} account=lab",
            f"modify user {name} set MaxSubmitJobs={self.max_submit}",
        ):
            done = self._run("sacctmgr", "--immediate", *line.split())
            assert done.returncode == 0 or "already exists" in done.stdout + done.stderr, done.stdout + done.stderr


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    with Cluster(Path(sys.argv[1]).resolve(), accounting="--accounting" in sys.argv) as running:
        print(f"export SLURM_CONF={running.config} PATH={running.folder}/bin:$PATH", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
