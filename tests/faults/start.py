"""How a run begins: its manifest, a second one where two are submitted at once, and the first submit."""

from __future__ import annotations

import contextlib
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.cluster.daemons.processes import DaemonError
from tests.faults.books import Ledger
from tests.faults.one_run import NO_CONDITIONS, POISONS, TWO_MANIFESTS, YIELDS_NAN, Run
from tests.faults.world import BUCKET, POISON, World

_HANG_S = "60"
_CLIPS = (14, 20)
_MESHES = (("1", "1", "auto"), ("1", "2", "cfg=2"), ("2", "1", "sp=2"), ("1", "2", "dp=2"))
_REFUSED_S = 180.0
_GUARDED = ("--min-quality", "psnr=100", "--quality-samples", "2")
_GUARDED_STEPS = 50
"""One number, so that all clips of a run have one plan and a job decides once."""
_REFUSED = 2
"""The exit code of a submit that is told that the output holds another run."""


def start_run(world: World, rng: random.Random, *, number: int, cluster: str, planned: Sequence[str]) -> Run:
    """Writes a manifest of a few clips of a second or two each and submits it. `planned`: of `FROM_THE_START`, what it has.

    Every second run is guarded, by a floor that no plan passes: its jobs step down until they render without reuse.
    With `TWO_MANIFESTS` another one is submitted to the same output in the same moment. Whichever is not refused is the run.
    """
    num_clips = rng.randint(*_CLIPS)
    guarded = number % 2 == 0
    steps = [_GUARDED_STEPS] if guarded else range(40, 101)
    poisons = [name for name in planned if name in POISONS]
    poisoned = dict(zip(rng.sample(range(num_clips), len(poisons)), poisons, strict=True))
    manifests = [
        _write_manifest(world.folder / f"run{number}{letter}.parquet", rng, letter, num_clips, poisoned, steps)
        for letter in ("c", *("d" if TWO_MANIFESTS in planned else ()))
    ]
    nodes, gpus, mesh = rng.choice(_MESHES)
    flags = (
        "--cluster", cluster, "--device", "cpu", "--json", "--job-minutes", "5", "--hang-seconds", _HANG_S,
        "--max-parallel-jobs", "2", "--nodes-per-job", nodes, "--gpus-per-node", gpus, "--mesh", mesh,
        *(_GUARDED if guarded else ("--no-baseline",)),
    )  # fmt: skip
    run = Run(
        world=world, rng=rng, number=number, cluster=cluster, flags=flags, clip_ids=_ids("c", num_clips),
        poisoned={f"c{index}": name for index, name in poisoned.items()}, manifest=manifests[0],
        ledger=Ledger(world.s3, f"s3://{BUCKET}/run{number}"),
    )  # fmt: skip
    of = "clips, guarded" if guarded else "clips"
    run.note(f"mesh {mesh}, {nodes} nodes, {num_clips} {of}; {', '.join(planned) or 'a plain start'}")
    world.proxy.drops_conditions = NO_CONDITIONS in planned
    _resume_nodes(world)
    if TWO_MANIFESTS in planned:
        _submit_two(run, manifests, poisoned)
    else:
        run.submit()
    return run


def _resume_nodes(world: World) -> None:
    """Brings back nodes that SLURM drained by itself after an earlier run's faults: else a job of two waits for ever."""
    if world.slurm is None:
        return
    for line in world.slurm.run("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines():
        node, state = line.split()
        if state.startswith(("drain", "down")):
            # It may have come back by itself meanwhile.
            with contextlib.suppress(DaemonError):
                world.slurm.run("scontrol", "update", f"nodename={node}", "state=resume")


def _submit_two(run: Run, manifests: Sequence[Path], poisoned: Mapping[int, str]) -> None:
    """Submits two manifests at once and takes the one that is not refused as the run."""
    letters, order = ("c", "d"), [0, 1]
    run.rng.shuffle(order)
    both: dict[int, subprocess.Popen[bytes]] = {}
    for index in order:
        both[index] = run.start_submit(manifests[index])
        time.sleep(run.rng.choice((0.0, 0.0, run.rng.uniform(0.0, 3.0))))
    run.drivers += both.values()
    run.wait_for(lambda: any(driver.poll() is not None for driver in both.values()), timeout_s=_REFUSED_S)
    refused = next((index for index, driver in both.items() if driver.poll() == _REFUSED), None)
    if refused is None:
        codes = {letters[index]: driver.poll() for index, driver in both.items()}
        run.broken.append(f"{run.url}: of two manifests none was refused within {_REFUSED_S:.0f} s; exit codes {codes}")
        refused = order[1]
        both[refused].kill()
        both[refused].wait()
    taken, num_clips = 1 - refused, len(run.clip_ids)
    run.drivers = [both[taken]]
    run.manifest, run.clip_ids = manifests[taken], _ids(letters[taken], num_clips)
    run.poisoned = {f"{letters[taken]}{index}": name for index, name in poisoned.items()}
    run.refused = tuple(_ids(letters[refused], num_clips))
    run.note(f"manifest {letters[refused]} ended with {both[refused].poll()}, the run is {letters[taken]}")


def _ids(letter: str, count: int) -> list[str]:
    return [f"{letter}{index}" for index in range(count)]


def _write_manifest(
    path: Path, rng: random.Random, letter: str, num_clips: int, poisoned: Mapping[int, str], steps: Sequence[int]
) -> Path:
    clips = range(num_clips)
    rows = {
        "clip_id": _ids(letter, num_clips),
        "prompt": [f"a red circle {POISON if poisoned.get(index) == YIELDS_NAN else 'moving left'}" for index in clips],
        "seed": [POISONS.get(poisoned.get(index, "")) or rng.randrange(1 << 24) for index in clips],
        "num_frames": [8] * num_clips,
        "height": [32] * num_clips,
        "width": [32] * num_clips,
        "num_steps": [rng.choice(steps) for _ in clips],
    }
    pq.write_table(pa.table(rows), path)
    return path
