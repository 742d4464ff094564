"""What each way of running is worth by itself: the ratio of two measured rows that differ in one word. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jobs.bench.rows import CACHE_DIT, DIFFUSERS, TAKEN_AWAY, Row
from jobs.settings import Mesh

Json = dict[str, Any]
MEASURED = "measured"


def factors(rows: Iterable[tuple[Row, Mapping[str, Any]]]) -> list[Json]:
    """Returns a line for each word of a measured row, if the row without that word was measured too.

    `factor`: how many times as fast the word makes it. `share_of_ideal`: of a mesh, the factor over the number of ranks.
    """
    measured = {row.name: (row, line) for row, line in rows if line["status"] == MEASURED}
    seconds = {name: float(line["seconds"]) for name, (_, line) in measured.items()}
    found = []
    for row, row_line in measured.values():
        for word, slower, faster in _fellows(row, fused="kernels" in row_line.get("execution", "").split()):
            if slower.name in seconds and faster.name in seconds:
                factor = seconds[slower.name] / seconds[faster.name]
                line: Json = {
                    "of": word, "group": row.group.name, "side": row.side, "from": slower.words, "to": faster.words,
                    "factor": factor,
                }  # fmt: skip
                if faster.mesh != slower.mesh:
                    line["share_of_ideal"] = factor / faster.mesh.num_ranks
                found.append(line)
    return found


def _fellows(row: Row, *, fused: bool) -> Iterable[tuple[str, Row, Row]]:
    """Yields the word, the row that should be slower, and the faster one."""
    if row.mode == "compiled":
        eager = replace(row, mode="eager", options=tuple(word for word in row.options if word not in TAKEN_AWAY))
        yield "compiling and fused kernels" if fused else "compiling", eager, row
    if row.broadcast != "none":
        yield row.broadcast, replace(row, broadcast="none"), row
    if row.side == CACHE_DIT:
        plain = tuple(word for word in row.options if word != "half")
        yield CACHE_DIT, replace(row, side=DIFFUSERS, options=plain), row
    for word in row.options:
        without = replace(row, options=tuple(other for other in row.options if other != word))
        if word in TAKEN_AWAY:
            yield word.removeprefix("no"), row, without
        else:
            yield word, without, row
    if row.mesh != Mesh():
        yield str(row.mesh), replace(row, mesh=Mesh()), row
