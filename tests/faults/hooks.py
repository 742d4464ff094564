"""Programs that stand before real ones in the PATH, so that a fault strikes in the very moment in which they are called.

Each looks for an order, a file that holds a few shell commands; it takes the order away (so one call obeys it), carries it
out, and goes on as the real program in the same process.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg

from tests.cluster.daemons.processes import DaemonError

_SCRIPT = """\
#!/bin/sh
case " $* " in *" --version "*|*" --help "*|*" --usage "*|*" --test-only "*) exec {real} "$@";; esac
if [ -e {order} ] && mv {order} {order}.$$ 2>/dev/null; then
    AFTER=
    . {order}.$$
    mv {order}.$$ {done}
    if [ -n "$AFTER" ]; then {real} "$@"; CODE=$?; sleep "$AFTER"; exit $CODE; fi
fi
exec {real} "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One program. An order may set `AFTER` to the seconds that pass between the program's end and what its caller hears."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def _order(self) -> Path:
        return self.folder / f"{self.name}.order"

    @property
    def _done(self) -> Path:
        return self.folder / f"{self.name}.done"

    def order(self, commands: str) -> None:
        """Lets the next call carry out these commands first, in which `$$` is its own pid."""
        self._done.unlink(missing_ok=True)
        part = self._order.with_suffix(".part")
        part.write_text(commands + "\n")
        part.replace(self._order)

    def take_back(self) -> None:
        """Takes back an order that no call has met."""
        self._order.unlink(missing_ok=True)

    @property
    def is_met(self) -> bool:
        """Whether a call has met the order; it may be at work on it."""
        return not self._order.exists()

    def install(self, real: str) -> None:
        names = {"real": real, "order": str(self._order), "done": str(self._done)}
        self.path.write_text(_SCRIPT.format(**{name: shlex.quote(value) for name, value in names.items()}))
        self.path.chmod(0o755)


def install_sbatch(folder: Path) -> Hook:
    """Puts a hook before sbatch. Raises DaemonError if there is no sbatch."""
    real = shutil.which("sbatch")
    if real is None:
        raise DaemonError("not installed: sbatch; run .ci/install-cluster-packages as root")
    return _install(folder, "sbatch", real)


def install_ffmpeg(folder: Path) -> Hook:
    """Puts a hook before the ffmpeg that the program uses; `IMAGEIO_FFMPEG_EXE` must name it."""
    return _install(folder, "ffmpeg", imageio_ffmpeg.get_ffmpeg_exe())


def _install(folder: Path, name: str, real: str) -> Hook:
    folder.mkdir(exist_ok=True)
    hook = Hook(folder=folder, name=name)
    hook.install(real)
    return hook
