"""The parts of `real_time`: their order, their limits of time and their commands, as data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.whole_files import write_whole
from jobs.bench.rows import RECORDED as RECORDED_WORD
from pab.broadcast.rules import rules_from_dict

RECORDED: tuple[str, ...] = (RECORDED_WORD,)
"""Words by which every row of a mesh that ranks share is measured once more."""
PLAN = "plan"
"""Among the words of rows: the plan that was searched."""
PLANS = ("none", "pab246", PLAN, "pab246 float8", f"{PLAN} float8")
SHARED = {2: ("cfg2", "sp2"), 4: ("cfg2 sp2", "sp4")}
"""Meshes that share a clip, by the number of ranks."""
PLAN_FILE, PROMPTS, JOB_CLIPS, PLANNED = "plan.json", "prompts.jsonl", "job.jsonl", "planned.json"
SEARCH = ("--computed-share", "0.5", "--reuse", "residuals", "--clips", "1", "--held-out", "1", "--presets", "pab246")
"""Half of the calls, by left-out passes and kept residuals, of one prompt, judged by one other beside PAB246."""
_NO_PLAN = f"no searched plan: {PLAN_FILE} is not in DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of clips: height, width, frames. `row_s`: what a row may take when no further one is begun."""

    searched: tuple[int, int, int]
    num_steps: int
    job_clips: int
    small: str
    large: str
    long: str
    row_s: float


FULL = Sizes(
    searched=(480, 848, 51), num_steps=30, job_clips=20, small="144 256 51", large="720x1280x51", long="720x1280x204",
    row_s=25.0,
)  # fmt: skip
TINY = Sizes(
    searched=(112, 128, 17), num_steps=10, job_clips=2, small="64 96 17", large="96x96x17", long="96x96x34", row_s=1.0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all parts go by. `folder`: DIR. `full`: models of full size, on GPUs; else tiny ones, on processes.

    `measured`: parts that have all of their results already. `plans`: words of rows.
    """

    folder: Path
    weights: Path
    ranks: int
    full: bool
    measured: frozenset[str]
    plans: tuple[str, ...] = PLANS

    @property
    def sizes(self) -> Sizes:
        """Sizes of clips."""
        return FULL if self.full else TINY

    @property
    def mode(self) -> str:
        """How blocks run: as in jobs on a GPU."""
        return "compiled" if self.full else "eager"

    @property
    def plan(self) -> str | None:
        """Returns the name of the searched plan's own file in DIR; None where there is no plan.

        Its digest is in its name, so rows of another plan are other rows.
        """
        file = self.folder / PLAN_FILE
        if not file.exists():
            return None
        text = file.read_text()
        own = f"plan-{rules_from_dict(json.loads(text)).digest}.json"
        write_whole(self.folder / own, text)
        return own

    def words_of_rows(self) -> list[str]:
        """Returns the words of rows, with the plan's file in place of `plan`; without a plan those of other rows."""
        plan = self.plan
        if plan is None:
            return [words for words in self.plans if PLAN not in words.split()]
        return [" ".join(plan if word == PLAN else word for word in words.split()) for words in self.plans]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process of a part, in DIR. `words`: for Python; {seconds}, {minutes} and {weights} are this call's.

    `result`: the file of its figures in DIR; where it `prints`, that is its standard output. `reads`: how they are read,
    of `real_time_table.READERS`. `spare_s`: how long it may go on after {seconds}. `goes_on`: what its file has from an
    earlier call counts when it runs again.
    """

    name: str
    words: tuple[str, ...]
    result: str
    reads: str
    prints: bool = False
    spare_s: float = 0.0
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What a part cannot measure here, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part. No command of it begins with less than `least_s` left, and it takes `most_s` at most: of full models."""

    name: str
    least_s: float
    most_s: float
    commands: Callable[[Setting], Iterator[Command | LeftOut]]


def many_gpus(setting: Setting, name: str, *words: str, repeat: int = 2, spare_s: float | None = None) -> Command:
    """Returns a call of `many_gpus` that writes NAME.json and keeps what that has."""
    return Command(
        name=name,
        words=("-m", "benchmarks.many_gpus", "--out", ".", "--name", name, "--ranks", str(setting.ranks), "--mode",
               setting.mode, "--repeat", str(repeat), "--go-on", "--seconds", "{seconds}", *words),
        result=f"{name}.json",
        reads="rows",
        spare_s=setting.sizes.row_s if spare_s is None else spare_s,
        goes_on=True,
    )  # fmt: skip


def _weights(setting: Setting) -> Iterator[Command | LeftOut]:
    if "plan" in setting.measured:
        yield LeftOut(name="weights", why="the plan, for which they are, is there")
        return
    words = ("-m", "benchmarks.random_weights", "open_sora", "{weights}", "--size", "full" if setting.full else "tiny")
    yield Command(name="weights", words=words, result="weights.txt", reads="weights", prints=True)


def _plan(setting: Setting) -> Iterator[Command | LeftOut]:
    if "plan" not in setting.measured and not setting.weights.exists():
        yield LeftOut(name="plan", why=f"no weights in {setting.weights}")
        return
    write_clips(setting.folder / PROMPTS, 2, setting.sizes)
    words = ("-m", "pipeline", "calibrate", PROMPTS, "--output", PLAN_FILE, "--model", "open_sora",
             "--weights", "open_sora={weights}", *SEARCH, "--max-minutes", "{minutes}")  # fmt: skip
    # Loading the model is not within its minutes.
    spare_s = 30.0 if setting.full else 1.0
    yield Command(name="plan", words=words, result=PLAN_FILE, reads="plan", spare_s=spare_s, goes_on=True)


def _one(setting: Setting) -> Iterator[Command | LeftOut]:
    # What nothing is left out of comes first: the others are compared with it.
    yield from _rows(setting, "one", setting.words_of_rows(), "one")


def _shared(setting: Setting) -> Iterator[Command | LeftOut]:
    yield from _on_meshes(setting, "shared", SHARED.get(setting.ranks, ()))


def _recorded(setting: Setting) -> Iterator[Command | LeftOut]:
    # Apart: should an exchange in a recording hang, no other row hangs with it.
    meshes = [f"{mesh} {word}" for mesh in SHARED.get(setting.ranks, ()) for word in RECORDED]
    yield from _on_meshes(setting, "recorded", meshes)


def _on_meshes(setting: Setting, name: str, meshes: Sequence[str]) -> Iterator[Command | LeftOut]:
    if not meshes:
        yield LeftOut(name=name, why=f"{setting.ranks} ranks; meshes are of {', '.join(map(str, SHARED))}")
        return
    # The fastest first: they are asked for most.
    yield from _rows(setting, name, setting.words_of_rows()[::-1], ",".join(meshes))


def _rows(setting: Setting, name: str, plans: list[str], meshes: str) -> Iterator[Command | LeftOut]:
    if plans:
        yield many_gpus(setting, name, "--parts", "rows", "--plans", ",".join(plans), "--meshes", meshes)
    if setting.plan is None and len(plans) < len(setting.plans):
        yield LeftOut(name=f"{name}, rows of the plan", why=_NO_PLAN)


def _decode(setting: Setting) -> Iterator[Command | LeftOut]:
    yield many_gpus(setting, "decode", "--parts", "decode", "--plans", "none", "--meshes", "one", repeat=3)


def _job(setting: Setting) -> Iterator[Command | LeftOut]:
    dp, plan = f"dp{setting.ranks}" if setting.ranks > 1 else "", setting.plan
    searched = None if plan is None else _job_of(setting, "job_plan", f"{plan} float8", dp)
    preset = _job_of(setting, "job_pab246", "pab246 float8", dp)
    if searched is None:
        yield LeftOut(name="job_plan", why=_NO_PLAN)
    # The plan is to be used where it is as good as PAB246; else PAB246 is the row that counts.
    yield from filter(None, (searched, preset) if plan_holds(setting.folder) else (preset, searched))
    if plan is None:
        return
    # Once more, now that all of its kernels are in the cache, as those of a cluster's second job are.
    yield _job_of(setting, "job_again", f"{plan} float8", dp)
    for mesh in SHARED.get(setting.ranks, ())[:1]:
        yield _job_of(setting, "job_shared", f"{plan} float8", mesh)
    yield from _planned_job(setting, plan, dp)


def _planned_job(setting: Setting, plan: str, dp: str) -> Iterator[Command | LeftOut]:
    write_clips(setting.folder / JOB_CLIPS, setting.sizes.job_clips, setting.sizes)
    words = ("-m", "pipeline", "submit", JOB_CLIPS, "--model", "open_sora", "--output", "planned", "--cluster", "local",
             "--gpus-per-node", str(setting.ranks), "--broadcast", plan, "--linears", "float8",
             "--dry-run", "--json")  # fmt: skip
    yield Command(name="planned", words=words, result=PLANNED, reads="mesh", prints=True)
    told = setting.folder / PLANNED
    if not told.exists():
        yield LeftOut(name="job_planned", why="the dry run told no mesh")
        return
    mesh = mesh_words(json.loads(told.read_text())["mesh"])
    if mesh == dp:
        yield LeftOut(name="job_planned", why=f"planning chooses {dp or 'one rank'} too")
    else:
        yield _job_of(setting, "job_planned", f"{plan} float8", mesh)


def _job_of(setting: Setting, name: str, plan: str, mesh: str) -> Command:
    row = f"job: {setting.mode} {plan} {mesh}".strip()
    return Command(
        name=name,
        words=("-m", "pipeline", "bench", "--rows", row, "--output", name, "--size", "full" if setting.full else "tiny",
               "--seconds", "{seconds}", "--row-seconds", "{seconds}"),
        result=f"{name}/bench.json",
        reads="bench",
        spare_s=10.0 if setting.full else 1.0,
    )  # fmt: skip


def _batch(setting: Setting) -> Iterator[Command | LeftOut]:
    # Small: below the tokens up to which loops are recorded, where the host bounds a clip alone.
    count = 40 if setting.full else 4
    for name, batch in (("batch_1", "1"), ("batch_4", "4"), ("batch_auto", "0")):
        yield _job_gpu(setting, name, setting.sizes.small.split(), count, "--batch", batch)


def _job_gpu(setting: Setting, name: str, size: Sequence[str], count: int, *words: str) -> Command:
    tiny = () if setting.full else ("--tiny", "--num-steps", "4", "--compile", "off")
    return Command(
        name=name,
        words=("-m", "benchmarks.job_gpu", "--out", name, "--clips", str(count), "--starts", "1", "--size", *size, *words,
               *tiny),
        result=f"{name}/job_gpu.json",
        reads="job",
    )  # fmt: skip


def _large(setting: Setting) -> Iterator[Command | LeftOut]:
    shared, sizes = SHARED.get(setting.ranks, ()), setting.sizes
    meshes, spare_s = ",".join(("one", *shared)), 2 * sizes.row_s

    def rows(name: str, plans: str, *words: str) -> Command:
        return many_gpus(
            setting, name, "--parts", "rows", "--plans", plans, *words, repeat=1, spare_s=spare_s
        )  # fmt: skip

    yield rows("large", "pab246", "--meshes", meshes, "--sizes", sizes.large)
    yield _job_gpu(setting, "job_large", sizes.large.split("x"), 6 if setting.full else 2)
    if setting.ranks != max(SHARED):
        yield LeftOut(
            name="longer clips, PAB579, dp2", why=f"{setting.ranks} ranks; they are measured with {max(SHARED)}"
        )
        return
    two_by_two = [words for words in setting.words_of_rows() if words != "none"]
    if two_by_two:
        yield rows("dp", ",".join(two_by_two), "--meshes", "cfg2")
    yield rows("pab579", "pab579", "--meshes", meshes)
    yield rows("long", "pab246", "--meshes", ",".join(shared), "--sizes", sizes.long)


PARTS = (
    Part(name="weights", least_s=30, most_s=60, commands=_weights),
    Part(name="plan", least_s=90, most_s=220, commands=_plan),
    Part(name="one", least_s=45, most_s=160, commands=_one),
    Part(name="recorded", least_s=45, most_s=200, commands=_recorded),
    Part(name="shared", least_s=45, most_s=260, commands=_shared),
    Part(name="decode", least_s=30, most_s=60, commands=_decode),
    Part(name="job", least_s=60, most_s=400, commands=_job),
    Part(name="batch", least_s=45, most_s=220, commands=_batch),
    Part(name="large", least_s=70, most_s=400, commands=_large),
)
"""In the order in which they are measured; seconds."""


def write_clips(path: Path, count: int, sizes: Sizes) -> None:
    """Writes prompts of 40 to 140 words as JSON lines, all of the size that is searched for."""
    height, width, num_frames = sizes.searched
    size = {"height": height, "width": width, "num_frames": num_frames, "num_steps": sizes.num_steps}
    rows = [
        {
            "prompt": f"clip {number}: " + "a cat walks over a red carpet " * (6 + 5 * number % 17),
            "seed": number,
            **size,
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mesh_words(mesh: str) -> str:
    """Returns a mesh as rows of `bench` have it: `dp2 cfg2` for `dp=2,cfg=2,sp=1`."""
    axes = dict(part.split("=") for part in mesh.split(","))
    return " ".join(f"{axis}{size}" for axis, size in axes.items() if size != "1")


def plan_holds(folder: Path) -> bool:
    """Whether the searched plan was found to be at least as good as PAB246, by the median on held-out prompts."""
    file = folder / PLAN_FILE
    psnr = judged(json.loads(file.read_text())) if file.exists() else {}
    return {"found", "pab246"} <= set(psnr) and psnr["found"][0] >= psnr["pab246"][0]


def judged(plan: dict[str, object]) -> dict[str, tuple[float, float]]:
    """Returns median and worst PSNR in dB of the plan (`found`) and of presets; infinite for the same frames."""
    about = plan.get("about")
    found: dict[str, tuple[float, float]] = {}
    for row in about.get("held_out", []) if isinstance(about, dict) else []:
        median, least = (row["psnr_db"][which] for which in ("median", "least"))
        found[row["broadcast"]] = float("inf") if median is None else median, float("inf") if least is None else least
    return found
