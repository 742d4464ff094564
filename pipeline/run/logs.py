"""The logs that a run's jobs have put into its bucket, read line by line while they grow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jobs.store import layout
from jobs.store.bucket import Bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One line of a job's log."""

    file: str
    line: str

    def __str__(self) -> str:
        return f"{self.file}: {self.line}"


@dataclass(slots=True, kw_only=True)
class Logs:
    """The logs of a run's jobs. `clip_id`, `job`: only lines that name this clip, or of this job; None for all."""

    bucket: Bucket
    clip_id: str | None = None
    job: str | None = None
    _sizes: dict[str, int] = field(default_factory=dict)
    """By file, how many bytes of it were told."""

    def new_lines(self) -> Iterator[LogLine]:
        """Yields the lines that no earlier call has yielded, file after file. Raises BucketError."""
        for name, size in sorted(self.bucket.listing("logs").items()):
            if not layout.is_log(f"logs/{name}") or (self.job is not None and not name.startswith(f"{self.job}.")):
                continue
            told = self._sizes.get(name, 0)
            if size <= told:
                continue
            data = self.bucket.read(f"logs/{name}")
            # A log is put there whole while its job goes on: its last line may be half of one.
            whole = data.rfind(b"\n") + 1
            self._sizes[name] = max(told, whole)
            for line in data[told:whole].decode(errors="replace").splitlines():
                if self._is_wanted(line):
                    yield LogLine(file=name, line=line)

    def _is_wanted(self, line: str) -> bool:
        if self.clip_id is None:
            return True
        # As `jobs/log.py` writes a value: plain, or as JSON where it needs quotes.
        value = rf"(?:{re.escape(self.clip_id)}|{re.escape(json.dumps(self.clip_id))})"
        return re.search(rf"(?:^| )clip={value}(?: |$)", line) is not None
