"""What of a table became slower or faster than in an older one. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.bench.factors import MEASURED

Json = dict[str, Any]
NOTICED = 0.05
"""A change by less than this share is not told: two runs of one row differ by some percent."""
LEAST_MS = 1.0
"""Steps that take less, as those of a replayed recording seem to, are not compared."""


def against(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Json]:
    """Returns a line for each row that both tables measured on the same kind of device.

    `ratio`: seconds now over seconds before. `steps`: the same by what a step computes. `changed`: slower, faster, or None.
    """
    olds = {(line["name"], device): line for line, device in _measured(before)}
    found = []
    for line, device in _measured(now):
        old = olds.get((line["name"], device))
        if old is None:
            continue
        seconds, before_s = _least(line), _least(old)
        ratio, steps = seconds / before_s, _steps(line, old)
        slowest, fastest = max([ratio, *steps.values()]), min([ratio, *steps.values()])
        changed = "slower" if slowest > 1 + NOTICED else "faster" if fastest < 1 / (1 + NOTICED) else None
        found.append(
            {"name": line["name"], "device": device, "seconds": seconds, "before_s": before_s, "ratio": ratio,
             "steps": steps, "changed": changed}
        )  # fmt: skip
    return found


def _measured(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for line in document["rows"]:
        if line["status"] == MEASURED:
            yield line, document["runs"][line.get("run", 0)]["device"]


def _least(line: Mapping[str, Any]) -> float:
    # The fastest clip: what else a machine did makes others slower, and none faster.
    return float(min(line.get("clip_seconds") or [line["seconds"]]))


def _steps(line: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, float]:
    now, before = line.get("step_ms") or {}, old.get("step_ms") or {}
    return {
        pattern: now[pattern] / before[pattern]
        for pattern in now
        if pattern in before and min(now[pattern], before[pattern]) >= LEAST_MS
    }


def shown(line: Mapping[str, Any]) -> str:
    """Returns a line as text: a row, how long it takes, and its steps that changed."""
    head = f"{line['changed'] or 'as before'}: {line['name']} {line['seconds']:.3f} s, before {line['before_s']:.3f} s"
    steps = [f"{pattern} {ratio:.2f}x" for pattern, ratio in line["steps"].items() if abs(ratio - 1) > NOTICED]
    return f"{head} ({line['ratio']:.2f}x)" + (f"; steps: {', '.join(steps)}" if steps else "")
