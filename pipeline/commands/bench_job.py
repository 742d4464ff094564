"""Rows of `bench` that are whole jobs: a shard of clips, rendered as `submit` has jobs render, on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.job import JobRequest, JobState
from cluster.local import LocalCluster
from jobs.bench.plan_files import rules_of
from jobs.bench.rows import IN_TURN as IN_TURN_WORD
from jobs.bench.rows import NOT_RECORDED, OPTIONS, RECORDED, TAKEN_AWAY, Row
from jobs.render import RenderShard
from jobs.render_settings import IN_TURN, RECORD_OFF, RECORD_ON, TOGETHER, RenderSettings
from jobs.settings import JobSettings
from jobs.store import layout
from jobs.store.bucket import Bucket
from manifests.shard_files import shard_file
from pab.text.prompt_cleaning import CLEANING_LIBRARIES
from pipeline.run.libraries import MODELS, absent, listed

if TYPE_CHECKING:
    from jobs.bench.run import BenchSettings

CLIPS = {"full": 20, "tiny": 2}
STEPS = {"full": 30, "tiny": 4}
_POLL_S = 0.2
_LOOPS = {RECORDED: RECORD_ON, NOT_RECORDED: RECORD_OFF}

Json = dict[str, Any]


class JobError(RuntimeError):
    """A job of a row did not record all of its clips; the message says why."""


def measure_job(row: Row, settings: BenchSettings, tell: Callable[[str], None]) -> Json:
    """Renders a job of new clips and returns its figures. Raises JobError; NotHereError where a library is missing.

    `seconds` are those of a clip, of all from the first prompt to the last record. What first clips compile is in them, as
    kernels of earlier jobs on this machine are.
    """
    from jobs.bench.job_model import FULL_SIZE, TINY_SIZE, find_random, find_tiny, job_clips  # loads torch
    from jobs.bench.peers.pipelines import NotHereError

    if missing := absent(CLEANING_LIBRARIES):
        raise NotHereError(f"cleaning prompts needs {listed(missing)}, which this Python does not have: {MODELS}")
    with tempfile.TemporaryDirectory(prefix="pab-pipeline-bench-") as folder:
        output = Path(folder) / "out"
        bucket, count = Bucket(str(output)), CLIPS[settings.size]
        full = settings.size == "full"
        size = FULL_SIZE if full else TINY_SIZE
        name, own_rules = broadcast_of(row)
        clips = job_clips(count, size, STEPS[settings.size], broadcast=name)
        bucket.write(layout.shard(0), shard_file(clips))
        job = RenderShard(
            settings=JobSettings(
                output=str(output),
                run_id="benchmark",
                mesh=row.mesh,
                render=render_settings(row, settings),
                broadcast_rules=own_rules,
                compile_backend=settings.backend,
            ),
            shard=0,
            find_family=find_random if full else find_tiny,
        )
        tell(f"{row.name}: a job of {count} clips begins")
        _run(job, row, settings, Path(folder) / "jobs")
        figures = _figures(bucket.read_json(layout.job_report(0)), row)
        records = bucket.records([clip.key for clip in clips]).values()
        return figures | {"graphs_after_warm_up": compiled_later(records)}


def broadcast_of(row: Row) -> tuple[str, dict[str, dict[str, object]] | None]:
    """Returns what rows of the job's manifest say, and the rules of a plan in a file by that name."""
    if row.broadcast in row.family.presets:
        return row.broadcast, None
    name = Path(row.broadcast).stem
    return name, {name: rules_of(row.family, row.broadcast).to_dict()}


def compiled_later(records: Iterable[Mapping[str, Any]]) -> int:
    """Returns how many graphs were compiled in other clips than the first one of each replica."""
    first: set[int] = set()
    graphs = 0
    for record in sorted(records, key=lambda record: str(record["started_at"])):
        rank = record["job"]["rank"]
        graphs += record["execution"]["graphs"] if rank in first else 0
        first.add(rank)
    return graphs


def render_settings(row: Row, settings: BenchSettings) -> RenderSettings:
    """Returns the settings of the row's job. Raises JobError for words that no job follows."""
    strange = [word for word in row.options if word in TAKEN_AWAY and word not in _LOOPS]
    if strange or row.sampling is not None:
        raise JobError(f"{strange[0] if strange else row.sampling!r}: no setting of a job; leave the word out")
    changed: dict[str, str] = {}
    for word in row.options:
        of_word = {"record_loops": _LOOPS[word]} if word in _LOOPS else OPTIONS.get(word, {})
        changed |= {name: str(value) for name, value in of_word.items()}
    cuda = settings.device == "cuda"
    return RenderSettings(
        model="open_sora",
        precision="bfloat16" if cuda else "float32",
        device=settings.device,
        compile=row.mode == "compiled",
        decode="fast" if cuda else "published",
        baseline=False,
        guidance_rows=IN_TURN if IN_TURN_WORD in row.options else TOGETHER,
        **changed,  # type: ignore[arg-type]
    )


def _run(job: RenderShard, row: Row, settings: BenchSettings, folder: Path) -> None:
    ranks = row.mesh.num_ranks
    cluster = LocalCluster(folder, 1)
    (started,) = cluster.submit(
        [
            JobRequest(
                name="job-00000",
                call=job,
                num_nodes=1,
                ranks_per_node=ranks,
                gpus_per_node=ranks if settings.device == "cuda" else 0,
                timeout_min=60,
            )
        ]
    )
    try:
        while started.state in {JobState.WAITING, JobState.RUNNING}:
            time.sleep(_POLL_S)
            cluster.poll()
    finally:
        cluster.cancel([started])
    if started.state is JobState.LOST:
        raise JobError(f"the job was lost: {started.error()}")


def _figures(report: Json, row: Row) -> Json:
    counts, whole = report["counts"], report["headline"]
    if counts["rendered"] < counts["clips"] or whole is None:
        reasons = [clip["reason"] for clip in report["clips"] if clip["outcome"] != "rendered"]
        raise JobError(f"{counts['rendered']} of {counts['clips']} clips were rendered: {reasons[:1]}")
    (start,) = report["starts"]
    waited = report["exchanges"]
    seconds = whole["seconds"] / whole["clips"]
    return {
        "seconds": seconds,
        "spread": None,
        "clips": whole["clips"],
        "frames_per_second": whole["frames_per_second"],
        "later_frames_per_second": whole["later_frames_per_second"],
        "clips_per_gpu_hour": 3600 / seconds / row.mesh.num_ranks,
        "device_busy": start["device_busy"],
        "median_s": {name: spread["median"] for name, spread in report["seconds_by_stage"].items()},
        "exposed_s": None if waited is None else waited["exposed_s"] / waited["clips"],
        "hidden_s": None if waited is None else waited["hidden_s"] / waited["clips"],
        "computed_share": report["broadcasts"][0]["computed_share"],
        "step_ms": {name: 1e3 * spread["median"] for name, spread in report["step_seconds"].items()},
        "kept_gb": report["kept_bytes_peak"] / 1e9,
        "peak_gb": start["peak_cuda_bytes"] / 1e9 if start["peak_cuda_bytes"] else None,
        "warm_up_s": start["warm_up_s"],
        "graphs": report["compiled_graphs"],
        "quality": None,
        "to_eager": None,
    }
