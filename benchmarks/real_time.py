"""Measures on one, two or four GPUs, in one call of bounded time, what real time asks for: part after part.

Every part is a command of this repository, in a process with a limit of time. Its output goes to DIR/PART.log and its
figures into DIR; after each command DIR/real_time.json and the table DIR/summary.txt are written anew. A part that fails or
is out of time says so, and the next one goes on. What DIR has is not measured again, so a later call with the same DIR, or
with its real_time.json alone, continues on any machine. SIGTERM ends all processes and leaves the files whole. On a machine
without GPUs tiny models run on two processes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bounded import EXIT, SIGNAL, TIME, Ended, Stop, run_bounded
from benchmarks.real_time_parts import PARTS, PLAN_FILE, PLANS, Command, LeftOut, Part, Setting
from benchmarks.real_time_table import READERS, rows_of, table
from benchmarks.whole_files import write_whole
from cluster.devices import gpu_kind
from pab.own_folder import own_folder

Json = dict[str, Any]
DOCUMENT, SUMMARY = "real_time.json", "summary.txt"
MEASURED, FAILED, OUT_OF_TIME, ENDED, RUNNING = "measured", "failed", "out of time", "ended", "running"
LEFT_OUT = "left out"
_TAIL_LINES, _TAIL_BYTES = 6, 4000
_PROMPT = "$ python "
_OF_TIME = ("time left", "stopped after")
"""Words by which `many_gpus` and `bench` tell that a row was out of time."""
_TERMINATED = 143
_SEARCH = ("weights", "plan")
"""Parts that a plan that is there already makes idle."""
UNREADABLE = (LookupError, TypeError, ValueError, ArithmeticError, OSError)
"""What reading a file of another form than was thought of may raise."""
LEAST_TINY_S = 1.0
"""Without GPUs no command begins with less left."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One call. `parts`: those that are asked for. `began`, `ends`: by the monotonic clock.

    `document`: what real_time.json says, of earlier calls too.
    """

    setting: Setting
    parts: Sequence[Part]
    document: Json
    began: float
    ends: float
    stop: Stop = field(default_factory=Stop)

    def run(self) -> None:
        """Runs the parts in their order, and writes what is known after each command."""
        for part in self.parts:
            before = self.document["parts"].get(part.name, {"commands": {}, "status": RUNNING})
            self.document["parts"][part.name] = found = before | {"why": "", "left_out": {}}
            try:
                self._run(part, found)
            except UNREADABLE as error:  # others are still to be measured
                found |= {"status": FAILED, "why": f"{type(error).__name__}: {error}"}
            self.write()

    def _run(self, part: Part, found: Json) -> None:
        began, asked = time.monotonic(), list[str]()
        for command in part.commands(self.setting):
            if isinstance(command, LeftOut):
                found["left_out"][command.name] = command.why
                continue
            asked.append(command.name)
            left_s = min(self.ends, began + part.most_s) - time.monotonic()
            self._measure(command, part, found["commands"], left_s)
        if not asked:
            why = "; ".join(found["left_out"].values())
            found |= {} if found["commands"] else {"status": LEFT_OUT, "why": why}
            return
        # Without those that are not asked for any more, as of a plan that another one has replaced.
        found["commands"] = {name: found["commands"][name] for name in asked}
        wrong = [record for record in found["commands"].values() if record["status"] != MEASURED]
        found |= {"status": wrong[0]["status"], "why": wrong[0]["why"]} if wrong else {"status": MEASURED}

    def _measure(self, command: Command, part: Part, commands: dict[str, Json], left_s: float) -> None:
        """Runs a command, unless it is measured already, and puts what is known of it among the part's."""
        before = commands.get(command.name, {})
        if is_done(before, command, self.setting):
            return
        told = {"words": list(command.words), "reads": command.reads, "file": command.result,
                "device": self.document["calls"][-1]["device"]}  # fmt: skip
        least_s = part.least_s if self.setting.full else LEAST_TINY_S
        if command.goes_on or (before.get("words") == told["words"] and (self.stop.asked or left_s < least_s)):
            told |= {name: before[name] for name in ("result", "rows", "took_s") if name in before}
        if self.stop.asked:
            commands[command.name] = told | {"status": ENDED, "why": "a signal ended this call before it"}
            return
        if left_s < least_s:
            why = f"{max(0.0, left_s):.0f} s were left, it needs {least_s:.0f}"
            commands[command.name] = told | {"status": OUT_OF_TIME, "why": why}
            return
        commands[command.name] = told | {"status": RUNNING, "why": "the call ended while it ran"}
        self.write()
        if not command.goes_on:
            (self.setting.folder / command.result).unlink(missing_ok=True)
        ended = self._run_command(command, part.name, left_s)
        told["took_s"] = round(ended.took_s, 1)
        result = read_result(self.setting.folder / command.result, command.reads)
        if result is not None:
            told["result"] = result
        try:
            if result is not None:
                told["rows"] = rows_of(command.reads, result, ended.took_s)
            status, why = outcome(ended, command, result, self.setting.folder / f"{part.name}.log", left_s)
        except UNREADABLE as error:
            status, why = FAILED, f"{command.result} could not be read: {type(error).__name__}: {error}"
        commands[command.name] = told | {"status": status, "why": why}

    def _run_command(self, command: Command, part: str, left_s: float) -> Ended:
        seconds = max(1.0, left_s - command.spare_s)
        values = {"seconds": f"{seconds:.0f}", "minutes": f"{seconds / 60:.2f}", "weights": str(self.setting.weights)}
        words = [word.format(**values) if "{" in word else word for word in command.words]
        result = self.setting.folder / command.result
        beside = result.with_name(f".{result.name}.new")
        with ExitStack() as files:
            log = files.enter_context((self.setting.folder / f"{part}.log").open("ab"))
            log.write(f"{_PROMPT}{' '.join(words)}\n".encode())
            log.flush()
            output = files.enter_context(beside.open("wb")) if command.prints else log
            ended = run_bounded(
                words, folder=self.setting.folder, output=output, errors=log, limit_s=left_s, stop=self.stop
            )
        if command.prints and ended.by == EXIT and ended.code == 0:
            beside.replace(result)
        elif command.prints:
            beside.unlink()
        return ended

    def write(self) -> None:
        """Writes real_time.json and summary.txt."""
        self.document["calls"][-1]["seconds"] = round(time.monotonic() - self.began, 1)
        write_whole(self.setting.folder / DOCUMENT, json.dumps(self.document, indent=1) + "\n")
        write_whole(self.setting.folder / SUMMARY, table(self.document))


def is_done(record: Mapping[str, Any], command: Command, setting: Setting) -> bool:
    """Whether a command was measured in the same words, and what it left for others is there."""
    there = setting.weights.exists() if command.reads == "weights" else (setting.folder / command.result).exists()
    return record.get("status") == MEASURED and record["words"] == list(command.words) and there


def read_result(file: Path, reads: str) -> Any:
    """Returns what a command's file says; None where there is none, or no whole one."""
    if not file.exists():
        return None
    text = file.read_text()
    if reads == "weights":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return None


def outcome(ended: Ended, command: Command, result: Any, log: Path, limit_s: float) -> tuple[str, str]:
    """Returns a command's status, and why it is no other than measured, with the last lines of its log."""
    last = last_lines(log)
    if ended.by == SIGNAL:
        return ENDED, "a signal ended this call while it ran"
    if ended.by == TIME:
        return OUT_OF_TIME, f"ended after {limit_s:.0f} s, all that it may take: {last}"
    if result is None:
        return FAILED, f"exit code {ended.code}, no {command.result}: {last}"
    missing = READERS[command.reads].missing(result)
    if missing is not None and any(words in missing for words in _OF_TIME):
        return OUT_OF_TIME, missing
    wrong = [missing, f"exit code {ended.code}: {last}" if ended.code else None]
    return (FAILED, "; ".join(filter(None, wrong))) if any(wrong) else (MEASURED, "")


def last_lines(log: Path) -> str:
    """Returns the last lines of what the last command in a log has printed."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith(_PROMPT)]
    own = [line.strip() for line in lines[begins[-1] + 1 if begins else 0 :] if line.strip()]
    return " | ".join(own[-_TAIL_LINES:]) or "it printed nothing"


def opened(folder: Path, ranks: int, size: str) -> Json:
    """Returns the document of earlier calls, with files that it has and DIR lacks written; a new one where there is none.

    Raises ValueError for a DIR of another number of ranks or another size of models.
    """
    file = folder / DOCUMENT
    if not file.exists():
        return {"schema": 1, "ranks": ranks, "size": size, "calls": [], "parts": {}}
    document: Json = json.loads(file.read_text())
    if (document["ranks"], document["size"]) != (ranks, size):
        raise ValueError(
            f"--out {folder} has {document['size']} models on {document['ranks']} ranks, this call {size} ones on {ranks}; "
            "name another folder"
        )
    for record in records(document):
        place = folder / record["file"]
        if record["status"] == RUNNING:
            record["status"] = ENDED
            if (result := read_result(place, record["reads"])) is not None:
                record["result"] = result
                with suppress(*UNREADABLE):
                    record["rows"] = rows_of(record["reads"], result, None)
        if record.get("result") is not None and not place.exists():
            text = record["result"] if record["reads"] == "weights" else json.dumps(record["result"], indent=1) + "\n"
            write_whole(place, text)
    return document


def records(document: Json) -> Iterator[Json]:
    """Yields the records of all commands."""
    for part in document["parts"].values():
        yield from part["commands"].values()


def forget(document: Json, names: Sequence[str], folder: Path) -> None:
    """Removes what parts have measured, so that they are measured again."""
    for name in names:
        for record in document["parts"].pop(name, {"commands": {}})["commands"].values():
            (folder / record["file"]).unlink(missing_ok=True)


def parser(parts: Sequence[Part] = PARTS) -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    names = ",".join(part.name for part in parts)
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--out", type=Path, required=True, metavar="DIR")
    found.add_argument("--seconds", type=float, default=540, help="for all parts; a part that runs then is ended")
    found.add_argument("--parts", default=names, help="of %(default)s, in this order")
    found.add_argument("--again", default="", metavar="PART,...", help="measure these again")
    found.add_argument("--ranks", type=int, metavar="N", help="default: all GPUs; without any 2 processes")
    found.add_argument("--plans", default=",".join(PLANS), help="words of rows, `plan` for the searched one")
    found.add_argument(
        "--plan", type=Path, metavar="FILE", help="take this plan as the searched one; leave out parts weights and plan"
    )
    found.add_argument(
        "--weights",
        type=Path,
        metavar="FOLDER",
        help="for random weights, 3 GB (default: one in the folder for temporary files)",
    )
    return found


def call_of(options: argparse.Namespace, parts: Sequence[Part]) -> Call:
    """Returns the call that is asked for. Raises ValueError for what cannot be."""
    import torch  # only to ask for GPUs

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks, size = options.ranks or gpus or 2, "full" if gpus else "tiny"
    if gpus and ranks > gpus:
        raise ValueError(f"--ranks {ranks}, found {gpus} GPUs")
    again, asked = names_of(options.again, parts), names_of(options.parts, parts)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    document = opened(folder, ranks, size)
    forget(document, again, folder)
    if options.plan is not None:
        take_plan(options.plan, document, folder)
    device = gpu_kind() or torch.cuda.get_device_name() if gpus else "cpu"
    began = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "device": device, "gpus": gpus}
    document["calls"].append(began | {"torch": torch.__version__, "seconds": 0.0})
    setting = Setting(
        folder=folder,
        weights=(options.weights or own_folder("real_time") / f"open_sora_{size}").resolve(),
        ranks=ranks,
        full=bool(gpus),
        measured=frozenset(name for name, part in document["parts"].items() if part["status"] == MEASURED),
        plans=tuple(words.strip() for words in options.plans.split(",")),
    )
    now = time.monotonic()
    return Call(
        setting=setting,
        parts=[
            part for part in parts if part.name in asked + again and (options.plan is None or part.name not in _SEARCH)
        ],
        document=document,
        began=now,
        ends=now + options.seconds,
    )


def take_plan(file: Path, document: Json, folder: Path) -> None:
    """Takes a plan as the searched one. Raises ValueError if DIR has searched another: its table would tell both as one."""
    text, there = file.read_text(), folder / PLAN_FILE
    if "plan" in document["parts"] and there.exists() and there.read_text() != text:
        raise ValueError(
            f"--plan {file}: {folder} has a searched plan; name another folder, or forget it (--again plan)"
        )
    write_whole(there, text)


def names_of(text: str, parts: Sequence[Part]) -> list[str]:
    """Returns names of parts. Raises ValueError for one that is none."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    allowed = [part.name for part in parts]
    if unknown := [name for name in found if name not in allowed]:
        raise ValueError(f"part {unknown[0]!r}, allowed {', '.join(allowed)}")
    return found


def main(arguments: list[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Runs the parts and prints the table: 1 where something failed or was out of time, 143 after a signal, else 0."""
    known = parser(parts)
    options = known.parse_args(arguments)
    try:
        call = call_of(options, parts)
    except (ValueError, OSError) as error:
        known.error(str(error))
    with call.stop.heeded():
        call.run()
    sys.stdout.write(table(call.document))
    if call.stop.asked:
        return _TERMINATED
    states = {call.document["parts"][part.name]["status"] for part in call.parts}
    return 0 if states <= {MEASURED, LEFT_OUT} else 1


if __name__ == "__main__":
    raise SystemExit(main())
