"""The checks of `doctor`: each looks at one thing and says what it means."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from cluster.job import ClusterError
from cluster.slurm_clients import ask_slurm
from jobs.store.bucket import Bucket, BucketError
from jobs.version import CODE, program
from pab.families import FAMILIES
from pipeline.run.libraries import MODELS, installed_as, listed, missing_libraries
from pipeline.run.run import open_bucket

OK, NOTE, MISSING = "ok", "note", "missing"
MIN_FREE_BYTES = 5 << 30
PYTHONS = ((3, 11), (3, 12), (3, 13))
_TIMEOUT_S = 60.0
_TIMED_OUT = f"no answer in {_TIMEOUT_S:.0f} s"
_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
nccl = ".".join(map(str, torch.cuda.nccl.version())) if cuda else None
print(json.dumps(dict(version=torch.__version__, cuda=torch.version.cuda, names=names, nccl=nccl,
                      gloo=torch.distributed.is_available() and torch.distributed.is_gloo_available())))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. `verdict`: "ok", "note" (a part of the program is off), or "missing" (no run can work)."""

    name: str
    verdict: str
    found: str
    mend: str = ""


def machine_checks() -> Iterator[Check]:
    """Yields what this machine has of what runs need."""
    yield program_check()
    yield python_check()
    yield from torch_checks()
    torch = find_spec("torch")
    if torch is not None and torch.origin is not None:
        yield from byte_code_checks(Path(torch.origin).parent)
    yield ffmpeg_check()
    yield disk_check(Path.cwd())
    yield slurm_check()
    yield dask_check()
    yield s3_check()
    yield models_check()
    yield c2pa_check()


def python_check() -> Check:
    """Looks at the interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in PYTHONS:
        return Check(name="python", verdict=OK, found=found)
    return Check(name="python", verdict=MISSING, found=found, mend="needs Python 3.11, 3.12 or 3.13")


def torch_checks() -> Iterator[Check]:
    """Asks torch, in a process of its own, for its version and the GPUs it can use."""
    ran = _run([sys.executable, "-c", _TORCH])
    if ran.returncode:
        last = (ran.stderr.strip() or "no answer").splitlines()[-1]
        mend = "the machine is busy, ask again" if last == _TIMED_OUT else "pip install torch"
        yield Check(name="torch", verdict=MISSING, found=last, mend=mend)
        return
    found = json.loads(ran.stdout)
    yield Check(name="torch", verdict=OK, found=f"{found['version']} (CUDA {found['cuda'] or 'none'})")
    if not found["gloo"]:
        yield Check(name="gloo", verdict=NOTE, found="no gloo in this torch", mend="jobs of several ranks cannot run")
    yield _gpu_check(found)


def _gpu_check(found: dict[str, object]) -> Check:
    names = found["names"]
    if isinstance(names, list) and names:
        return Check(
            name="gpu", verdict=OK, found=f"{len(names)} ({', '.join(sorted(set(names)))}), NCCL {found['nccl']}"
        )
    if not shutil.which("nvidia-smi"):
        return Check(name="gpu", verdict=NOTE, found="none", mend="local jobs run on the CPU, a GPU is a process there")
    if found["cuda"] is None:
        return Check(
            name="gpu", verdict=NOTE, found="a GPU is here and this torch is the CPU build",
            mend="pip install --force-reinstall torch",
        )  # fmt: skip
    why = _run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]).stdout.strip()
    return Check(
        name="gpu", verdict=NOTE, found=f"torch sees none, nvidia-smi: {why or 'no answer'}",
        mend=f"the driver is older than CUDA {found['cuda']}, or CUDA_VISIBLE_DEVICES hides the GPUs",
    )  # fmt: skip


def byte_code_checks(package: Path) -> Iterator[Check]:
    """Says so where Python neither has byte code of a package nor can keep it, so that each job compiles its sources."""
    kept = Path(cache_from_source(str(package / "__init__.py")))
    there = next(folder for folder in kept.parents if folder.exists())
    if kept.exists() or (os.access(there, os.W_OK) and not sys.dont_write_bytecode):
        return
    why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{there} cannot be written"
    yield Check(
        name="byte code", verdict=NOTE, found=f"none of {package.name}, and {why}",
        mend=f"each job compiles its sources anew, for 8 s and more; once: python -m compileall -q {package.parent}",
    )  # fmt: skip


def ffmpeg_check() -> Check:
    """Encodes a tiny H.264 video with the ffmpeg that jobs use."""
    import imageio_ffmpeg

    try:
        binary = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return Check(name="ffmpeg", verdict=MISSING, found=str(error), mend="pip install imageio-ffmpeg")
    source = ["-f", "lavfi", "-i", "testsrc=size=32x32:rate=8:duration=1"]
    ran = _run([binary, "-v", "error", *source, "-c:v", "libx264", "-f", "null", "-"])
    if ran.returncode:
        found = f"{binary} cannot encode H.264: {ran.stderr.strip()[-200:]}"
        return Check(name="ffmpeg", verdict=MISSING, found=found, mend="unset IMAGEIO_FFMPEG_EXE or install x264")
    return Check(name="ffmpeg", verdict=OK, found=f"encodes H.264 ({Path(binary).name})")


def disk_check(folder: Path) -> Check:
    """Looks at the space where local runs and temporary videos go."""
    places = {"here": folder, "temporary": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    found = ", ".join(f"{size / 2**30:.1f} GiB free {name} ({places[name]})" for name, size in free.items())
    if min(free.values()) < MIN_FREE_BYTES:
        return Check(name="disk", verdict=NOTE, found=found, mend="a long run may fill it; set TMPDIR or clear space")
    return Check(name="disk", verdict=OK, found=found)


def slurm_check() -> Check:
    """Asks SLURM for its nodes."""
    if not shutil.which("sbatch"):
        return Check(name="slurm", verdict=NOTE, found="no sbatch", mend="jobs run here (--cluster local)")
    try:
        said = ask_slurm("sinfo", "--noheader", "--format=%P %D nodes %T %G")
    except ClusterError as error:
        return Check(
            name="slurm", verdict=NOTE, found=f"sbatch is here and sinfo fails: {str(error).splitlines()[-1]}",
            mend="set SLURM_CONF, run this on a login node, or submit with --cluster local",
        )  # fmt: skip
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return Check(name="slurm", verdict=OK, found="; ".join(lines[:6]) or "no partition")


def dask_check() -> Check:
    """Looks for what the dashboard needs."""
    try:
        found = ", ".join(f"{package} {version(package)}" for package in ("distributed", "bokeh", "cryptography"))
    except PackageNotFoundError as error:
        mend = f"pip install {error.name}; until then submit with --no-dask"
        return Check(name="dask", verdict=NOTE, found=f"{error.name} is not installed", mend=mend)
    return Check(name="dask", verdict=OK, found=found)


def s3_check() -> Check:
    """Looks for the package that s3:// URLs need."""
    try:
        return Check(name="s3", verdict=OK, found=f"s3fs {version('s3fs')} (check a bucket with --output s3://...)")
    except PackageNotFoundError:
        mend = "for s3:// URLs: pip install 'pab-pipeline[s3]'"
        return Check(name="s3", verdict=NOTE, found="s3fs is not installed", mend=mend)


def models_check() -> Check:
    """Looks for the libraries that all families but `demo` need."""
    names = sorted({installed_as(library) for family in FAMILIES.values() for library in family.libraries})
    missing = missing_libraries(dict.fromkeys(FAMILIES))
    if missing:
        absent = sorted({library for each in missing.values() for library in each})
        left = [name for name in FAMILIES if name not in missing]
        told, others = f"only {', '.join(left)} can run", "the others"
        if len(left) >= len(missing):
            told, others = f"{', '.join(missing)} cannot run", "these"
        found = f"{listed(absent)} not installed: {told}"
        return Check(name="models", verdict=NOTE, found=found, mend=f"for {others}: {MODELS}")
    return Check(name="models", verdict=OK, found=", ".join(f"{name} {_version(name)}" for name in names))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(a copy that no installer knows)"


def program_check() -> Check:
    """Says which program this is and where its files are."""
    return Check(name="program", verdict=OK, found=f"{program()} in {CODE}")


def c2pa_check() -> Check:
    """Looks for the package that `--c2pa` and `verify` need."""
    try:
        return Check(name="c2pa", verdict=OK, found=f"c2pa-python {version('c2pa-python')}")
    except PackageNotFoundError:
        mend = "for --c2pa and verify: pip install 'pab-pipeline[c2pa]'"
        return Check(name="c2pa", verdict=NOTE, found="c2pa-python is not installed", mend=mend)


def weights_check(model: str, weights: str | None) -> Check:
    """Looks for a family's weights."""
    family = FAMILIES.get(model)
    if family is None:
        return Check(
            name="weights", verdict=MISSING, found=f"no model {model!r}", mend=f"allowed: {', '.join(FAMILIES)}"
        )
    try:
        return Check(name="weights", verdict=OK, found=f"{model}: {family.weights_digest(weights)}")
    except (OSError, ValueError) as error:
        return Check(name="weights", verdict=MISSING, found=f"{model}: {error}", mend="name them with --weights")


def bucket_check(output: str) -> Check:
    """Writes, reads and removes a small file where a run is to live."""
    path = f"logs/doctor-{uuid.uuid4().hex}"
    try:
        bucket: Bucket = open_bucket(output)
        bucket.write(path, b"doctor")
        came_back = bucket.read(path) == b"doctor"
        exclusive = bucket.is_local or bucket.test_exclusive()
        bucket.remove(path)
    except (BucketError, FileNotFoundError) as error:
        return Check(
            name="output", verdict=MISSING, found=str(error), mend="mend what it says, or name another --output"
        )
    if not came_back:
        return Check(
            name="output", verdict=MISSING, found=f"{output}: what was written did not come back",
            mend="the store must read its own writes",
        )  # fmt: skip
    if not exclusive:
        return Check(
            name="output", verdict=NOTE, found=f"{output}: writes, reads, does not create exclusively",
            mend="submits take turns there; a store that knows If-None-Match is safer",
        )  # fmt: skip
    return Check(name="output", verdict=OK, found=f"{output}: writes, reads, creates exclusively")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 127, "", _TIMED_OUT)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))
