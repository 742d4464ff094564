"""A real SLURM of several virtual nodes with fake GPUs and accounting, in one throw-away folder, as an ordinary user."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.daemons.processes import DaemonError, Daemons, free_ports, need_programs, port_answers, wait_for
from tests.cluster.daemons.slurm_conf import SlurmPlan, gres_conf, slurm_conf, slurmdbd_conf

_PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "srun",
    "sbatch",
    "sacctmgr",
)
_SOCKET_PATH_BYTES = 107


class Slurm:
    """One private cluster. Clients find it by `environment` (SLURM_CONF)."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
        self.environment = {**kept, "SLURM_CONF": str(self.root / "slurm.conf")}
        self.daemons = Daemons(self.root, self.environment)
        self.plan: SlurmPlan | None = None

    def start(self, *, num_nodes: int = 4, gpus_per_node: int = 4) -> None:
        """Starts all daemons and waits until every node is idle. Raises DaemonError."""
        self._start(num_nodes=num_nodes, gpus_per_node=gpus_per_node, first_job_id=random.randrange(1_000, 9_000_000))

    def start_beside(self, other: Slurm, *, cluster: str, first_job_id: int) -> None:
        """Starts a second cluster of one node at the site of another one, whose clients know it by its name."""
        assert other.plan is not None
        self._start(num_nodes=1, gpus_per_node=1, first_job_id=first_job_id, cluster=cluster, beside=other.plan)

    def _start(
        self,
        *,
        num_nodes: int,
        gpus_per_node: int,
        first_job_id: int,
        cluster: str = "virt",
        beside: SlurmPlan | None = None,
    ) -> None:
        need_programs(_PROGRAMS)
        _need_loopback_host_name()
        if len(str(self.root / "run" / "munge.sock")) > _SOCKET_PATH_BYTES:
            raise DaemonError(f"{self.root} is too long a path for a Unix socket; use a shorter one")
        first_port = free_ports(3 + num_nodes)
        self.plan = plan = SlurmPlan(
            root=self.root,
            user=getpass.getuser(),
            host=socket.gethostname().split(".")[0],
            first_port=first_port,
            first_job_id=first_job_id,
            # submitit finds the master by the node's name, which must resolve without /etc/hosts
            nodes=tuple(f"127.0.0.{2 if beside else 1}{index}" for index in range(1, num_nodes + 1)),
            gpus_per_node=gpus_per_node,
            cluster=cluster,
            beside=beside,
        )
        self._write_files(plan)
        try:
            if beside is None:
                self._start_munge()
                self._start_accounting(plan)
            self.daemons.run("sacctmgr", "-i", "add", "cluster", cluster)
            self._start_control(plan)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all jobs, then all daemons."""
        with contextlib.suppress(DaemonError, subprocess.TimeoutExpired):
            self.end_jobs()
        for pid in self._step_daemons():
            _kill_tree(pid)
        nodes = [name for name in self.daemons.names() if name.startswith("slurmd.")]
        for group in (nodes, ["slurmctld"], ["slurmdbd"], ["mariadbd"], ["munged"]):
            self.daemons.stop(group)

    def end_jobs(self) -> None:
        """Cancels all jobs and waits until none is left. Raises DaemonError."""
        self.run("scancel", "--full", "--quiet", "--user", getpass.getuser())
        wait_for("the end of the jobs", lambda: not self.run("squeue", "--noheader").strip(), timeout_s=20)

    def run(self, *command: str) -> str:
        """Runs a SLURM client command."""
        return self.daemons.run(*command)

    def start_node(self, name: str) -> None:
        """Starts a node's daemon, again after `kill_node`."""
        (self.root / "spool" / name).mkdir(parents=True, exist_ok=True)
        self.daemons.spawn(f"slurmd.{name}", ["slurmd", "-D", "-N", name, "-f", str(self.root / "slurm.conf")])

    def kill_node(self, name: str) -> None:
        """Takes a node away as a power cut does: SIGKILL to its daemon, its step daemons and all that they run."""
        for pid in (self.daemons.pid(f"slurmd.{name}"), *self._step_daemons(name)):
            _kill_tree(pid)

    def freeze_node(self, name: str) -> list[int]:
        """Stops a node as a hung kernel does: its daemons and all that they run. Returns what was stopped."""
        pids = [
            pid for root in (self.daemons.pid(f"slurmd.{name}"), *self._step_daemons(name)) for pid in _tree(root)
        ]  # fmt: skip
        signal_all(pids, signal.SIGSTOP)
        return pids

    def kill_daemon(self, name: str) -> None:
        """Ends a node's daemon with SIGKILL; its step daemons and what they run go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.daemons.pid(f"slurmd.{name}"), signal.SIGKILL)

    def start_controller(self) -> None:
        """Starts slurmctld, again after `kill_controller`, and waits until it answers. Raises DaemonError."""
        self.daemons.spawn("slurmctld", ["slurmctld", "-D", "-i", "-f", str(self.root / "slurm.conf")])
        log = self.root / "log" / "slurmctld.log"
        ping = ("scontrol", "ping")
        wait_for("slurmctld", lambda: "is UP" in self.daemons.run(*ping, check=False), timeout_s=20, log=log)

    def kill_controller(self) -> None:
        """Takes slurmctld away with SIGKILL: what it knew of the last seconds may be lost."""
        os.kill(self.daemons.pid("slurmctld"), signal.SIGKILL)

    def freeze_controller(self) -> list[int]:
        """Stops slurmctld: what is sent to it waits, and it acts on that when it goes on. Returns what was stopped."""
        pids = [self.daemons.pid("slurmctld")]
        signal_all(pids, signal.SIGSTOP)
        return pids

    def wait_idle(self, *, timeout_s: float = 30) -> None:
        """Waits until every node is idle."""

        def idle() -> bool:
            return set(self.run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%t").split()) == {
                "idle"
            }

        wait_for("every node", idle, timeout_s=timeout_s, log=self.root / "log" / "slurmctld.log")

    def _write_files(self, plan: SlurmPlan) -> None:
        for name in ("log", "state", "etc", "run", "gpu"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        for index in range(plan.gpus_per_node):
            (self.root / "gpu" / f"gpu{index}").symlink_to("/dev/null")
        key = self.root / "etc" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        (self.root / "etc" / "plugstack.conf").touch()
        (self.root / "slurm.conf").write_text(slurm_conf(plan))
        (self.root / "gres.conf").write_text(gres_conf(plan))
        (self.root / "slurmdbd.conf").write_text(slurmdbd_conf(plan))
        (self.root / "slurmdbd.conf").chmod(0o600)

    def _start_munge(self) -> None:
        run, etc = self.root / "run", self.root / "etc"
        paths = {"socket": run / "munge.sock", "key-file": etc / "munge.key", "pid-file": run / "munged.pid"}
        paths |= {"log-file": self.root / "log" / "munged.log", "seed-file": run / "munge.seed"}
        options = [f"--{name}={path}" for name, path in paths.items()]
        self.daemons.spawn("munged", ["munged", "--foreground", "--num-threads=4", *options])
        log = self.root / "log" / "munged.out"
        wait_for("munged", (run / "munge.sock").exists, timeout_s=10, log=log)

    def _start_accounting(self, plan: SlurmPlan) -> None:
        data, log = f"--datadir={self.root}/db", self.root / "log" / "mariadbd.out"
        # Two servers that begin at once must not remove each other's temporary tables.
        own = self.root / "db-temporary"
        own.mkdir()
        temporary = f"--tmpdir={own}"
        user = ["--user=root"] if os.geteuid() == 0 else []
        self.daemons.run(
            "mariadb-install-db", "--no-defaults", data, temporary, "--auth-root-authentication-method=normal",
            "--skip-test-db", "--skip-name-resolve", "--innodb-log-file-size=8M",
            "--innodb-flush-log-at-trx-commit=0", *user, timeout_s=60,
        )  # fmt: skip
        socket_path = self.root / "run" / "mysql.sock"
        self.daemons.spawn("mariadbd", [
            "mariadbd", "--no-defaults", data, temporary, f"--socket={socket_path}", f"--pid-file={self.root}/run/mysql.pid",
            "--bind-address=127.0.0.1", f"--port={plan.sql_port}", "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=8M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
            "--skip-log-bin", "--skip-name-resolve", *user,
        ])  # fmt: skip
        # Its port answers a moment before its socket is there.
        wait_for("mariadbd", lambda: socket_path.exists() and port_answers(plan.sql_port), timeout_s=30, log=log)
        grant = (
            "create database slurm_acct; create user slurm@'127.0.0.1' identified by 'slurm';"
            "grant all on slurm_acct.* to slurm@'127.0.0.1'"
        )
        self.daemons.run("mariadb", "--no-defaults", "-uroot", f"--socket={socket_path}", "-e", grant)
        self.daemons.spawn("slurmdbd", ["slurmdbd", "-D"])
        log = self.root / "log" / "slurmdbd.log"
        wait_for("slurmdbd", lambda: port_answers(plan.accounting_port), timeout_s=30, log=log)

    def _start_control(self, plan: SlurmPlan) -> None:
        self.start_controller()
        for name in plan.nodes:
            self.start_node(name)
        self.wait_idle()

    def _step_daemons(self, node: str | None = None) -> list[int]:
        """Returns the pids of this cluster's (node's) slurmstepd processes, which outlive their slurmd."""
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not folder.name.isdigit() or not (folder / "comm").read_text().startswith("slurmstepd"):
                    continue
                files = [str(each.readlink()) for each in (folder / "fd").iterdir()]
                wanted = (
                    [f"{self.root}/"] if node is None else [f"{self.root}/log/slurmd.{node}.log", f"/spool/{node}/"]
                )
                if any(part in name for part in wanted for name in files if name.startswith(f"{self.root}/")):
                    found.append(int(folder.name))
        return found


def _need_loopback_host_name() -> None:
    # Every listener, srun's too, binds to what the host name resolves to.
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        address = str(error)
    if not address.startswith("127."):
        raise DaemonError(
            f"the host name {host!r} does not resolve to loopback ({address}); run .ci/install-cluster-packages"
        )


def signal_all(pids: Iterable[int], signum: int) -> None:
    """Sends a signal to processes; to those that are gone it is none."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


def _kill_tree(pid: int) -> None:
    signal_all(_tree(pid), signal.SIGKILL)
    time.sleep(0.05)


def _tree(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit():
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found
