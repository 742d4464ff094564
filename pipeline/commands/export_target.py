"""What lies where an export writes: a list there names the files of one, so that an overwrite removes these and no others."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from pipeline.exits import UsageError

_TAR_FILE = re.compile(r"clips-[0-9]{6,}\.tar")
_MOST_TAR_FILES = 10_000_000
"""What a list may say at most; a damaged one must not keep the bucket busy for days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormFiles:
    """The files of a form. `last`: the one that is written last, so a set without it is not finished.

    `folder`: where its videos are, `""` for a form of tar files.
    """

    form: str
    last: str
    folder: str = ""

    @property
    def list_file(self) -> str:
        """The list of the files of an export. Readers of data sets pass over names with a dot in front."""
        return f".export-{self.form}.json"

    def video(self, clip_id: str) -> str:
        """Returns where a clip's video goes."""
        return f"{self.folder}/{clip_id}.mp4"


def tar_file(number: int) -> str:
    """Returns the name of a tar file (0, 1, ...)."""
    return f"clips-{number:06d}.tar"


class Target:
    """The folder that is exported to. All that is removed there stands in the list of an earlier export of the same form."""

    def __init__(self, bucket: Bucket, files: FormFiles) -> None:
        self.bucket, self.files = bucket, files

    def earlier(self) -> set[str] | None:
        """Returns the files that an earlier export has written, or was about to; None if there was none.

        Raises UsageError if its list is damaged.
        """
        try:
            document = self.bucket.read_json(self.files.list_file)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            raise UsageError(self._damaged(error.what)) from error
        return self._named_by(document)

    def check(self, earlier: set[str] | None, clip_ids: Collection[str], *, overwrite: bool) -> list[str]:
        """Raises UsageError if files are in the way; returns others that are not of an export, and stay.

        `clip_ids`: the clips that are to be written.
        """
        url, last = self.bucket.url, self.files.last
        if earlier is not None and not overwrite:
            if self.bucket.exists(last):
                raise UsageError(f"{url}/{last} exists; name another folder, or add --overwrite")
            raise UsageError(
                f"{url} has an unfinished export ({self.files.list_file}); add --overwrite to write it anew, "
                "or name another folder"
            )
        ours = earlier or set()
        planned = {self.files.video(clip_id) for clip_id in clip_ids} if self.files.folder else set()
        strangers = sorted(self._names() - ours)
        in_the_way = [name for name in strangers if name in planned or name == last or _TAR_FILE.fullmatch(name)]
        if in_the_way:
            raise UsageError(self._in_the_way(in_the_way))
        return strangers

    def begin(self, earlier: Iterable[str] | None, clip_ids: Iterable[str]) -> None:
        """Removes what an earlier export left, that which makes it look finished first, and says what will be written."""
        ours = set(earlier or ())
        self.bucket.map_files(self.bucket.remove, ours & {self.files.last})
        self.bucket.map_files(self.bucket.remove, sorted(ours - {self.files.last}))
        if self.files.folder:
            self._say_clips(clip_ids)
        else:
            self._say_tar_files(0)

    def begin_tar_file(self, number: int) -> str:
        """Says that there will be this tar file (0, 1, ...) and returns its name.

        Raises UsageError if it is there already: all of an earlier export are removed by now.
        """
        if self.bucket.exists(tar_file(number)):
            raise UsageError(self._in_the_way([tar_file(number)]))
        self._say_tar_files(number + 1)
        return tar_file(number)

    def end(self, missing: Collection[str], clip_ids: Iterable[str], num_files: int) -> None:
        """Corrects the list: clips without a video are not of this export. Without any tar file there is nothing to list."""
        if self.files.folder and missing:
            gone = set(missing)
            self._say_clips(clip_id for clip_id in clip_ids if clip_id not in gone)
        if not self.files.folder and not num_files:
            self.bucket.remove(self.files.list_file)

    def _say_clips(self, clip_ids: Iterable[str]) -> None:
        self._say({"clips": list(clip_ids)})

    def _say_tar_files(self, count: int) -> None:
        self._say({"tar_files": count})

    def _say(self, what: Mapping[str, object]) -> None:
        self.bucket.write_json(self.files.list_file, {"format": 1, "form": self.files.form, **what})

    def _names(self) -> set[str]:
        """Returns the files there that a reader of the form could take for a part of it."""
        folder = self.files.folder
        if folder:
            found = {f"{folder}/{name}" for name in self.bucket.listing(folder)}
        else:
            found = {name for name in self._own_listing() if name.startswith("clips-") and name.endswith(".tar")}
        return found | ({self.files.last} if self.bucket.exists(self.files.last) else set())

    def _own_listing(self) -> Iterable[str]:
        if self.bucket.is_local:
            return self.bucket.listing("")
        # Stores list a folder by its name. The root of one has none: there, each tar file is asked for when its turn comes.
        above, _, name = self.bucket.url.rpartition("/")
        return () if above.endswith(":/") else Bucket(above, retry_policy=self.bucket.retry_policy).listing(name)

    def _named_by(self, document: Mapping[str, Any]) -> set[str]:
        # Whoever writes to a bucket must not choose what is removed: only names that this program makes are taken.
        if self.files.folder:
            clip_ids = document.get("clips")
            if not isinstance(clip_ids, list) or not all(map(is_clip_id, clip_ids)):
                raise UsageError(self._damaged("its clips are no list of ids"))
            return {self.files.last, *map(self.files.video, clip_ids)}
        count = document.get("tar_files")
        if not isinstance(count, int) or not 0 <= count <= _MOST_TAR_FILES:
            raise UsageError(self._damaged(f"tar_files={count!r}, needs a number from 0 to {_MOST_TAR_FILES:,}"))
        return {tar_file(number) for number in range(count)}

    def _in_the_way(self, names: Sequence[str]) -> str:
        more = f", and {len(names) - 1} more" if names[1:] else ""
        return (
            f"{self.bucket.url}/{names[0]}{more}: in the way, and {self.files.list_file} does not name it as a file of an "
            "earlier export; move it away, or name another folder"
        )

    def _damaged(self, what: str) -> str:
        return f"{self.bucket.url}/{self.files.list_file}: {what}; empty the folder yourself, or name another one"


def is_clip_id(value: object) -> bool:
    """Whether a value is the id of a clip, which names a file and never a folder."""
    return isinstance(value, str) and layout.is_video(layout.video(value))
