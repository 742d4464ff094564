"""What commands of `real_time` have measured, as lines of a short table; and whether all that was asked of them is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.real_time_parts import judged
from pab.families.open_sora.family import OPEN_SORA

Json = dict[str, Any]
HEADER = ("part", "row", "seconds", "frames/s", "times one card", "exposed s", "quality dB", "took s", "")
_TOLD = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the table. `seconds`: of a clip; `times`: one card's seconds over these; `more`: what has no column."""

    row: str
    seconds: float | None = None
    frames_per_second: float | None = None
    times: float | None = None
    exposed_s: float | None = None
    quality: str | None = None
    took_s: float | None = None
    more: str = ""

    def cells(self) -> tuple[str, ...]:
        """Returns the line as text, a cell for each word of HEADER but the first."""
        return (
            self.row,
            _number(self.seconds, 3),
            _number(self.frames_per_second, 1),
            "-" if self.times is None else f"{self.times:.2f}x",
            _number(self.exposed_s, 3),
            self.quality or "-",
            _number(self.took_s, 1),
            self.more,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Reads a command's figures. `lines`: of the table. `missing`: what was asked for and is not there; None if all is."""

    lines: Callable[[Any], Iterable[Line]]
    missing: Callable[[Any], str | None]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _rows(found: Json) -> Iterator[Line]:
    alone = {
        (line.get("began"), line["name"].split(",")[0]): line for line in found["lines"] if line.get("ranks") == 1
    }  # fmt: skip
    for line in found["lines"]:
        if "skipped" in line or line.get("status") == "failed":
            yield Line(row=line["name"], took_s=line["took_s"], more=line.get("skipped") or line["why"][:_TOLD])
            continue
        times = line.get("times_one_card")
        if line["name"].startswith("decode") and (one := alone.get((line.get("began"), "decode"))):
            times = one["seconds"] / line["seconds"]
        quality = line.get("quality_to_plain_db") or line.get("quality_db")
        told = [f"{line['clips_at_once']} clips at once"] if line.get("clips_at_once", 1) > 1 else []
        told += [f"of an earlier call, {line['device']}"] if "device" in line else []
        yield Line(
            row=line["name"],
            seconds=line.get("seconds"),
            frames_per_second=line.get("frames_per_second"),
            times=times,
            exposed_s=line.get("exposed_s"),
            quality=None if quality is None else f"{quality:.1f}",
            took_s=line["took_s"],
            more=", ".join(told),
        )


def _missing_rows(found: Json) -> str | None:
    failed = [f"{line['name']}: {line['why']}" for line in found["lines"] if line.get("status") == "failed"]
    skipped = [line for line in found["lines"] if "skipped" in line]
    if failed:
        return f"{len(failed)} of {len(found['lines'])} rows failed, the first: {failed[0]}"
    return f"{len(skipped)} of {len(found['lines'])} rows: {skipped[0]['skipped']}" if skipped else None


def _bench(found: Json) -> Iterator[Line]:
    for row in found["rows"]:
        if row["status"] != "measured":
            yield Line(row=row["name"], took_s=row.get("row_s"), more=f"{row['status']}: {row['why']}"[:_TOLD])
            continue
        later = row["later_frames_per_second"]
        told = [f"{row['clips_per_gpu_hour']:.0f} clips per GPU-hour"]
        told += [] if later is None else [f"{later:.1f} frames/s without compiling"]
        told += _busy(row)
        yield Line(
            row=row["name"],
            seconds=row["seconds"],
            frames_per_second=row["frames_per_second"],
            exposed_s=row["exposed_s"],
            took_s=row["row_s"],
            more=", ".join(told),
        )


def _busy(found: Json) -> list[str]:
    # A job of very few clips tells no share.
    share = (found["device_busy"] or {}).get("share")
    return [] if share is None else [f"{100 * share:.1f} % busy"]


def _missing_of_bench(found: Json) -> str | None:
    wrong = [f"{row['status']}: {row['why']}" for row in found["rows"] if row["status"] != "measured"]
    return wrong[0] if wrong else None if found["rows"] else "no row"


def _plan(found: Json) -> Iterator[Line]:
    about, psnr = found["about"], judged(found)
    searched = about["searched_psnr_db"]
    told = "the same frames" if searched is None else f"{searched:.1f} dB on the prompt it was searched on"
    if {"found", "pab246"} <= set(psnr):
        holds = psnr["found"][0] >= psnr["pab246"][0]
        told += f"; {'at least as good as' if holds else 'not as good as'} PAB246"
    if left := (*about.get("unfinished", ()), *about.get("left_out", ())):
        told += f"; a bounded search, not done: {', '.join(left)}"
    yield Line(row=f"searched plan {about['digest']}", quality=_worst(psnr.get("found")), more=told)
    for name, values in psnr.items():
        if name != "found":
            yield Line(row=f"{name} beside it", quality=_worst(values))


def _worst(values: tuple[float, float] | None) -> str | None:
    return None if values is None else f"{values[0]:.1f} (worst {values[1]:.1f})"


def _missing_of_plan(found: Json) -> str | None:
    left = found["about"].get("unfinished", ())
    return f"the search was ended before: {', '.join(left)}" if left else None


def _job(found: list[Json]) -> Iterator[Line]:
    for start in found:
        sizes = ", ".join(f"{each['clips']} by {each['size']}" for each in start["batches"])
        rate = start["clips_per_gpu_hour"]
        yield Line(
            row="a job on one card",
            seconds=3600 / rate if rate else None,
            took_s=start["process_s"],
            more=", ".join([f"{rate or 0:.0f} clips per GPU-hour", f"batches: {sizes}", *_busy(start)]),
        )


def _missing_of_job(found: list[Json]) -> str | None:
    for start in found:
        counts = start["counts"]
        if counts["rendered"] < counts["clips"]:
            return f"{counts['rendered']} of {counts['clips']} clips were rendered: {start['failed'][:1]}"
    return None if found else "no start"


def _mesh(found: Json) -> Iterator[Line]:
    yield Line(row=f"planning chooses {found['mesh']}", more=found["mesh_reason"])


def _nothing(_found: object) -> tuple[Line, ...]:
    return ()


def _all_there(_found: object) -> str | None:
    return None


READERS: Mapping[str, Reader] = {
    "rows": Reader(lines=_rows, missing=_missing_rows),
    "bench": Reader(lines=_bench, missing=_missing_of_bench),
    "plan": Reader(lines=_plan, missing=_missing_of_plan),
    "job": Reader(lines=_job, missing=_missing_of_job),
    "mesh": Reader(lines=_mesh, missing=_all_there),
    "weights": Reader(lines=_nothing, missing=_all_there),
}


def rows_of(reads: str, result: object, took_s: float | None) -> list[tuple[str, ...]]:
    """Returns a command's figures as cells of the table. Where they do not tell seconds of the clock, the command's stand."""
    lines = list(READERS[reads].lines(result)) or [Line(row="-")]
    if lines[0].took_s is None:
        lines[0] = replace(lines[0], took_s=took_s)
    return [line.cells() for line in lines]


def table(document: Json) -> str:
    """Returns the summary: a table of all rows, and what was not measured with its reason."""
    lines: list[tuple[str, ...]] = [HEADER]
    devices = {call["device"] for call in document["calls"]}
    for name, part in document["parts"].items():
        for command, record in part["commands"].items():
            label = name if command == name else f"{name}: {command}"
            label += f" ({record['device']})" if len(devices) > 1 else ""
            lines += [
                (label, *cells) for cells in record.get("rows") or [Line(row="-", took_s=record.get("took_s")).cells()]
            ]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(HEADER))]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines]
    heads = [
        f"{document['size']} models, {document['ranks']} ranks; seconds are of denoising a clip, of a job all in",
        *(
            f"call of {call['began']}: {call['gpus']} x {call['device']}, {call['seconds']:.0f} s"
            for call in document["calls"]
        ),
    ]
    return "\n".join([*heads, "", *told, "", *_whole_clip(document), *_not_measured(document)]) + "\n"


def _whole_clip(document: Json) -> Iterator[str]:
    shared = [*_lines(document, "shared"), *_lines(document, "recorded")]
    rows = [line for line in shared if "clip" in line and "seconds" in line]
    decoded = [line for line in _lines(document, "decode") if "seconds" in line]
    if rows and decoded:
        row, last = min(rows, key=lambda line: line["seconds"]), max(decoded, key=lambda line: line["ranks"])
        frames, seconds = row["clip"]["num_frames"], row["seconds"] + last["seconds"]
        yield (
            f"one clip: {row['name']} {row['seconds']:.2f} s, decoding on {last['ranks']} ranks {last['seconds']:.2f} s, "
            f"both {seconds:.2f} s; its {frames} frames play {frames / OPEN_SORA.defaults.fps:.2f} s"
        )


def _lines(document: Json, name: str) -> list[Json]:
    record = document["parts"].get(name, {}).get("commands", {}).get(name, {})
    return (record.get("result") or {}).get("lines", [])


def _not_measured(document: Json) -> Iterator[str]:
    for name, part in document["parts"].items():
        if part["status"] == "failed" and all(part["why"] != record["why"] for record in part["commands"].values()):
            yield f"{name}: {part['status']}: {part['why']}"
        for what, why in part["left_out"].items():
            yield f"{what}: left out: {why}"
        for command, record in part["commands"].items():
            if record["status"] != "measured":
                yield f"{command}: {record['status']}: {record['why']}"
