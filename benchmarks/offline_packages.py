"""Packs what this project needs on a GPU machine that has torch but no network: archives, and a use.sh to source there.

pip resolves for that machine's Python. Wheels with nothing inside stand in for the packages that it has: what those ask for
is not fetched, and what is packed goes with their versions. Markers of requirements are read for the Python that runs this.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parent.parent
HAVE = (
    # torch, and what it asks for
    "torch==2.11.0", "triton==3.6.0", "filelock==4.3.1", "fsspec==2026.9.0", "jinja2==3.1.6", "markupsafe==3.0.4",
    "mpmath==1.3.0", "networkx==3.7", "setuptools==81.0.0", "sympy==1.14.0", "typing-extensions==4.16.0",
    # transformers and accelerate, likewise
    "transformers==5.17.0", "accelerate==1.15.0", "huggingface-hub==1.33.0", "tokenizers==0.23.2", "safetensors==0.8.0",
    "numpy==2.5.2", "packaging==26.4", "psutil==7.2.2", "pyyaml==6.0.4", "regex==2026.11.19", "tqdm==4.70.1",
    # asked for by nothing of these; whoever reads prompts and writes pictures has them
    "sentencepiece==0.2.2", "pillow==13.0.0",
)  # fmt: skip
"""A machine with torch and transformers. Exact for one that you know: `--have FILE` with its `pip list --format=freeze`."""
EXTRAS = ("models", "energy")
"""Extras of pyproject.toml that benchmarks need beside its dependencies: published families, and joules of jobs. Not `c2pa`,
which only `--c2pa` and `verify` import, nor peft, which only tests do. `hopper` is 8 MB, so it is asked for by --extra."""
SMALLER = ("imageio-ffmpeg<0.8",)
"""Its ffmpeg weighs 21 MB packed, from 0.8 on 50 MB, and both write and compare what jobs ask for."""
PLATFORMS = ("manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 29)))
"""Up to what torch's own wheels ask of a machine. pip takes a wheel only if its platform is named."""
DROPPED = (
    "bin/*", "share/*", "etc/*", "*/tests/*", "*/__pycache__/*",  # commands, notebooks, tests
    "*.pyx", "*.pxd", "*.pxi", "*.c", "*.cc", "*.h", "*.hpp",  # what only compiling needs
    "pyarrow/include/*", "pyarrow/src/*", "pyarrow/*flight*", "pyarrow/*gandiva*", "pyarrow/_substrait*",
    "pyarrow/*_s3*", "pyarrow/_gcsfs*", "pyarrow/_azurefs*", "pyarrow/_hdfs*",  # of these the project has fsspec's
    "pyarrow/libarrow*.so", "pyarrow/libarrow*.so.*.*",  # copies of libarrow*.so.N, for wheels hold no links
    "bokeh/server/static/js/lib/*", "bokeh/server/static/js/*.ts", "bokeh/server/static/js/*[!n].js",  # pages load *.min.js
)  # fmt: skip
"""Patterns of files that are not packed. pyarrow's lib asks for libarrow_substrait, so that one stays."""
PACKAGES, FRONT = "packages", "front"
BEHIND = f"""
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

here = Path(__file__).resolve().parent
packages = str(here.parent / "{PACKAGES}")
if packages not in sys.path:
    sys.path.append(packages)  # behind the machine's own, so where both have a package its own is taken
# This file stands before the machine's own of the same name, which has to run too.
own = PathFinder.find_spec("sitecustomize", [place for place in sys.path if Path(place).resolve() != here])
if own and own.loader:
    own.loader.exec_module(module_from_spec(own))
"""
USE = """# Source this file in bash. It unpacks the archives beside it once, and puts their packages behind the machine's own.
_pab_use() {
    local here to part archive python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' || {
        echo "use.sh: these packages are for Python @PYTHON@, and $python is another one; set PYTHON" >&2; return 1; }
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    to=${TMPDIR:-/tmp}/pab-packages-@DIGEST@
    if [ ! -d "$to" ]; then
        part=$(mktemp -d "$to.XXXXXX") || return 1
        for archive in @ARCHIVES@; do
            "$python" -m tarfile --filter data -e "$here/$archive" "$part" || { rm -rf "$part"; return 1; }
        done
        # Whoever comes second finds the folder there, whole.
        mv -T "$part" "$to" 2>/dev/null || rm -rf "$part"
        [ -d "$to" ] || { echo "use.sh: cannot make $to" >&2; return 1; }
    fi
    export PYTHONPATH="$to/@FRONT@${PYTHONPATH:+:$PYTHONPATH}"
    export HF_HUB_OFFLINE=1  # else each look for published weights waits for a network
}
_pab_use
"""


def canonical(name: str) -> str:
    """Returns a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed() -> list[str]:
    """Returns the requirements of pyproject.toml: dependencies, and those of `EXTRAS`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *(each for extra in EXTRAS for each in extras[extra]), *SMALLER]


def machines_packages(said: str | None) -> dict[str, str]:
    """Returns names and versions of what the machine has. `said`: a file of NAME==VERSION lines, names with commas, or None.

    A name without a version has the one that is installed here. Raises SystemExit if none is.
    """
    if said and Path(said).is_file():
        lines = Path(said).read_text().split()
        words = [line for line in lines if re.fullmatch(r"[\w.-]+==\S+", line)]
    else:
        words = list(HAVE) if said is None else said.split(",")
    found: dict[str, str] = {}
    for word in words:
        name, _, exact = word.partition("==")
        try:
            found[canonical(name)] = exact or version(name)
        except PackageNotFoundError:
            raise SystemExit(f"--have {name}: say which version, {name}==VERSION; it is not installed here") from None
    return found


def stand_in(folder: Path, name: str, exact: str) -> Path:
    """Writes a wheel with nothing inside, which asks for nothing: pip takes it for the machine's own package."""
    bare = name.replace("-", "_")
    wheel, info = folder / f"{bare}-{exact}-py3-none-any.whl", f"{bare}-{exact}.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {exact}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: stand-in\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return wheel


def install(requirements: Sequence[str], have: Mapping[str, str], python: str, folder: Path) -> dict[str, str]:
    """Installs into `folder` what `requirements` need beside `have`; returns names and versions, without those of `have`.

    Raises SystemExit, with what pip said, if a package has no wheel for that Python or the versions do not go together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        wheels = [str(stand_in(Path(scratch), name, exact)) for name, exact in have.items()]
        report = Path(scratch) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
            "--ignore-installed", "--only-binary=:all:", "--implementation", "cp",
            "--python-version", python, "--target", str(folder),
            *(word for each in PLATFORMS for word in ("--platform", f"{each}_x86_64")),
            "--report", str(report), *wheels, *requirements,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit("\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING")))
        rows = [each["metadata"] for each in json.loads(report.read_text())["install"]]
    return {name: row["version"] for row in rows if (name := canonical(row["name"])) not in have}


def slim(folder: Path) -> dict[str, list[Path]]:
    """Removes from an installed folder what running does not need; returns the files of each package that has some."""
    found: dict[str, list[Path]] = {}
    for info in sorted(folder.glob("*.dist-info")):
        record = info / "RECORD"
        paths = [Path(line.rsplit(",", 2)[0].strip('"')) for line in record.read_text().splitlines() if line]
        kept = sorted({path for path in paths if (folder / path).is_file() and is_kept(path.as_posix())})
        for path in kept:
            strip(folder / path)
        # importlib.metadata finds by it which package a module is of; digests are most of its size.
        record.write_text("".join(f"{path},,\n" for path in kept))
        found[canonical(info.name.removesuffix(".dist-info").rpartition("-")[0])] = [folder / path for path in kept]
    return found


def is_kept(path: str) -> bool:
    """Whether a file of a package goes into the archive. `path`: below the folder that Python looks in."""
    if path.startswith("..") or Path(path).is_absolute():
        return False
    return not any(fnmatch.fnmatch(path, each) for each in DROPPED)


def strip(file: Path) -> None:
    """Takes symbols out of a shared object, where `strip` is. One for another processor than this leaves it as it is."""
    if ".so" in file.suffixes and shutil.which("strip"):
        subprocess.run(["strip", "--strip-unneeded", file], capture_output=True, check=False)


def packed(files: Iterable[Path], folder: Path, below: str) -> bytes:
    """Returns an xz stream of a tar of `files`, without tar's end. The same files make the same bytes."""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for file in files:
            member = tarfile.TarInfo(f"{below}/{file.relative_to(folder).as_posix()}")
            member.size, member.mode = file.stat().st_size, 0o755 if file.stat().st_mode & 0o100 else 0o644
            with file.open("rb") as opened:
                tar.addfile(member, opened)
        end = tar.offset
    content = tar_bytes.getvalue()[:end]
    window = max(4096, min(len(content), 64 << 20))  # a larger one takes memory and finds nothing more
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    return lzma.compress(content, filters=filters)


def write_archive(archive: Path, folder: Path, versions: Mapping[str, str], front: str | None) -> int:
    """Writes the packages of `versions` and, with `front`, the file that puts them behind. Prints sizes; returns bytes."""
    files = {name: each for name, each in slim(folder).items() if name in versions}
    with ThreadPoolExecutor() as pool:  # lzma lets other threads run
        streams = list(pool.map(lambda each: packed(each, folder, PACKAGES), files.values()))
    rows = sorted(zip(files, streams, strict=True), key=lambda row: -len(row[1]))
    for name, stream in rows:
        sys.stdout.write(f"{len(stream) / 1e6:8.2f} MB  {name} {versions[name]}\n")
    if front:
        (folder / "sitecustomize.py").write_text(front)
        streams.append(packed([folder / "sitecustomize.py"], folder, FRONT))
    archive.write_bytes(b"".join([*streams, lzma.compress(bytes(1024))]))
    size = archive.stat().st_size
    sys.stdout.write(f"{size / 1e6:8.2f} MB  in {archive}\n")
    return size


def main(arguments: list[str] | None = None) -> None:
    """Writes the archives and use.sh, and prints what each package weighs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where packages.tar.xz and use.sh go")
    parser.add_argument("--python", default="3.12", help="the machine's Python (%(default)s)")
    parser.add_argument("--have", help="what it has: NAME==VERSION,... or a file of `pip list --format=freeze` there")
    parser.add_argument(
        "--extra", default="", help="further packages, each in an archive of its own: fa3-fwd,cache-dit"
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    have = machines_packages(options.have)
    wanted = {PACKAGES: needed(), **{each: [each] for each in options.extra.split(",") if each}}
    archives: list[Path] = []
    total = 0
    for name, requirements in wanted.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            versions = install(requirements, have, options.python, folder)
            archive = options.out / f"{re.split('[^A-Za-z0-9._-]', name)[0]}.tar.xz"
            total += write_archive(archive, folder, versions, None if archives else BEHIND)
        have |= versions
        archives.append(archive)
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in archives)).hexdigest()[:12]
    names = {
        "PYTHON": options.python,
        "DIGEST": digest,
        "ARCHIVES": " ".join(each.name for each in archives),
        "FRONT": FRONT,
    }
    (options.out / "use.sh").write_text(re.sub("@([A-Z]+)@", lambda found: names[found[1]], USE))
    sys.stdout.write(f"{total / 1e6:8.2f} MB  in all ({total / 2**20:.2f} MiB)\n")


if __name__ == "__main__":
    main()
