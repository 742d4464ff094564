"""The world of the fault runner: SLURM, S3 behind a proxy, weights and a small scratch disk; all of it ends with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import s3fs
import torch

from pab.families.demo.config import DEPTH
from pab.families.demo.weights import build_parts, demo_config, save_demo
from tests.cluster.daemons.ceph import Ceph, S3Server
from tests.cluster.daemons.slurm import Slurm
from tests.faults import poison
from tests.faults.hooks import Hook, install_ffmpeg, install_sbatch
from tests.faults.proxy import Proxy, open_proxy
from tests.pipeline.command import ROOT, environment

BUCKET = "faults"
POISON = "motionless"
"""A word of the vocabulary whose embedding is NaN in these weights: clips whose prompt holds it cannot be rendered."""
_SCRATCH_MB = 96
_JOBS_MB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`s3` is the server itself; the program sees the proxy.

    `scratch`, `jobs_disk`: small disks for temporary files and for `runs/.jobs`, None where none may be mounted. `sbatch`,
    `ffmpeg`: what stands before these programs. `bad_nodes`: a file of a node's name there makes it a bad one.
    """

    folder: Path
    work: Path
    weights: Path
    environment: Mapping[str, str]
    ceph: Ceph
    s3: S3Server
    proxy: Proxy
    slurm: Slurm | None
    scratch: Path | None
    jobs_disk: Path | None
    sbatch: Hook | None
    ffmpeg: Hook
    bad_nodes: Path

    @property
    def s3_port(self) -> int:
        return urlsplit(self.s3.endpoint).port or 0

    def pipeline(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts the command line; stdout goes to `log`, stderr beside it."""
        with log.open("wb") as stdout, log.with_suffix(".err").open("wb") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline", *words],
                cwd=self.work,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )


@contextlib.contextmanager
def open_world(*, cluster: str) -> Iterator[World]:
    """Starts everything; stops it and removes every file at the end, also after an error. Raises DaemonError."""
    with contextlib.ExitStack() as stack:
        # Short: the path must leave room for the name of a Unix socket.
        folder = Path(tempfile.mkdtemp(prefix="pab-"))
        folder.chmod(0o711)  # munge refuses a socket that others cannot reach
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        ceph = Ceph(folder / "s3")
        stack.callback(ceph.stop)
        server = ceph.start()
        slurm = None
        if cluster == "slurm":
            slurm = Slurm(folder / "slurm")
            stack.callback(slurm.stop)
            slurm.start()
        proxy = stack.enter_context(open_proxy(urlsplit(server.endpoint).port or 0, secret_key=server.secret_key))
        scratch = stack.enter_context(_small_disk(folder / "scratch", _SCRATCH_MB))
        jobs_disk = stack.enter_context(_small_disk(folder / "work" / "runs" / ".jobs", _JOBS_MB))
        (folder / "bad-nodes").mkdir()
        hooks = folder / "hooks"
        ffmpeg, sbatch = install_ffmpeg(hooks), install_sbatch(hooks) if slurm else None
        _make_bucket(server)
        seen = replace(server, endpoint=f"http://127.0.0.1:{proxy.port}")
        yield World(
            folder=folder,
            work=folder / "work",
            weights=poisoned_weights(folder / "weights"),
            environment={
                **environment(),
                **seen.environment,
                **({"SLURM_CONF": slurm.environment["SLURM_CONF"]} if slurm else {}),
                **({"TMPDIR": str(scratch)} if scratch else {}),
                "PATH": f"{hooks}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
                "IMAGEIO_FFMPEG_EXE": str(ffmpeg.path),
                poison.BAD_NODES: str(folder / "bad-nodes"),
                "PYTHONPATH": f"{ROOT}{os.pathsep}{poison.install(folder / 'plugins')}",
            },
            ceph=ceph,
            s3=server,
            proxy=proxy,
            slurm=slurm,
            scratch=scratch,
            jobs_disk=jobs_disk,
            sbatch=sbatch,
            ffmpeg=ffmpeg,
            bad_nodes=folder / "bad-nodes",
        )


@contextlib.contextmanager
def _small_disk(folder: Path, size_mb: int) -> Iterator[Path | None]:
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=1777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _make_bucket(server: S3Server) -> None:
    fs = s3fs.S3FileSystem(
        key=server.access_key, secret=server.secret_key, endpoint_url=server.endpoint, skip_instance_cache=True
    )
    fs.call_s3("create_bucket", Bucket=BUCKET)


def poisoned_weights(folder: Path) -> Path:
    """Leaves weights of the demo model, random and with `POISON` in them."""
    torch.manual_seed(5)
    config = demo_config(small=True)
    parts = build_parts(replace(config, transformer=replace(config.transformer, depth=DEPTH)))
    with torch.no_grad():
        parts.text_encoder.words.weight[parts.vocabulary.index(POISON)] = float("nan")
    folder.mkdir()
    save_demo(parts, folder / "demo.safetensors")
    return folder
