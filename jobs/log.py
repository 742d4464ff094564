"""A job's log: one logfmt line per event, to stderr (which submitit keeps) and to a local file that goes to the bucket."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

SENT_EVERY_S = 15
"""A job that runs puts its log into the bucket so often."""
_EVENT_FIELDS = "event_fields"


def log_event(log: logging.Logger, event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs an event such as `clip_started` with its fields; None fields are left out."""
    log.log(level, event, extra={_EVENT_FIELDS: {name: value for name, value in fields.items() if value is not None}})


class LogfmtFormatter(logging.Formatter):
    """Writes `time=... level=... run=... job=... rank=... event=... name=value ...`, always on one line."""

    def __init__(self, context: Mapping[str, object]) -> None:
        super().__init__()
        self._context = dict(context)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {
            "time": time,
            "level": record.levelname.lower(),
            **self._context,
            "event": record.getMessage(),
            **getattr(record, _EVENT_FIELDS, {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={_value(value)}" for name, value in fields.items())


def _value(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    plain = text.isprintable() and not any(character in text for character in ' "=\\')
    if plain and text:
        return text
    # A control character beyond ASCII would reach the terminal of whoever reads the log.
    return json.dumps(text, ensure_ascii=not text.replace("\n", "").isprintable())


@contextmanager
def open_log(file: Path, **context: object) -> Iterator[None]:
    """Sends what `jobs` logs to stderr and to `file`, each line with the context (run, job, rank), until left."""
    log = logging.getLogger("jobs")
    formatter = LogfmtFormatter(context)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr), logging.FileHandler(file, encoding="utf-8")]
    level, propagate = log.level, log.propagate
    log.setLevel(logging.INFO)
    # Whoever configured the root logger would print every event a second time.
    log.propagate = False
    for handler in handlers:
        handler.setFormatter(formatter)
        log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate
        for handler in handlers:
            log.removeHandler(handler)
        handlers[1].close()
