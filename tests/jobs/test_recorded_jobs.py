"""Loops that jobs record: which ones, by `--record-loops`; the same videos as without, also of ranks that share clips."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from jobs.outcome import Rendered, Skipped
from jobs.rendering.loaded_family import load_family, loop_recorder
from jobs.settings import Mesh
from jobs.store import layout
from pab.broadcast.state import BroadcastState
from pab.execution.choice import Execution
from pab.families import FAMILIES
from pab.family import Family, LoadRequest
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import plan_for
from pab.sampling.recorded_loop import LoopRecorder, run_again
from pab.sampling.recorded_sizes import MAX_ROW_TOKENS
from tests.jobs.machines import RankError, run_on_forked_ranks
from tests.jobs.videos import read_video
from tests.jobs.world import TINY, load_tiny, render_job, write_shard
from tests.jobs.world import clip as row
from tests.pab.worlds import clip

STEPS = 8


@pytest.mark.parametrize(("said", "small", "large"), [("auto", True, False), ("on", True, True), ("off", True, False)])
def test_loops_are_recorded_as_the_run_says(tmp_path: Path, said: str, small: bool, large: bool) -> None:
    settings = render_job(str(tmp_path)).settings
    settings = replace(settings, render=replace(settings.render, record_loops=said))
    family = FAMILIES["demo"]
    loaded = load_family(family, settings, torch.device("cpu"))
    assert loaded.recorder is None, "loops of this family are never recorded"
    loaded.execution = Execution(records=True)
    loaded.recorder = loop_recorder(loaded.execution, said)
    request = clip()
    plan = plan_for(family, request, family.presets["pab246"], "float32")
    tokens = family.num_tokens(request.num_frames, request.height, request.width)
    many = MAX_ROW_TOKENS // tokens
    for clips, group, recorded, row_tokens in (
        (1, NodeGroup(), small, 2 * tokens),
        (1, NodeGroup(cfg=Axis(size=2), clip=Axis(size=2)), small, tokens),
        (many, NodeGroup(), large, 2 * many * tokens),
    ):
        found = loaded.loop_settings(request, plan, group, clips=clips, keep="full")
        # Small clips round alike whether their loops are recorded or not.
        assert (found.recorder is not None) == recorded
        assert found.recorder is None or found.recorder.stopped == (said == "off")
        assert found.row_tokens == row_tokens


def test_a_device_without_memory_lets_recordings_go_once(tmp_path: Path) -> None:
    loaded = load_family(FAMILIES["demo"], render_job(str(tmp_path)).settings, torch.device("cpu"))
    assert not loaded.record_no_more(), "none is recorded"
    loaded.recorder = loop_recorder(Execution(records=True), "on")
    assert loaded.recorder is not None
    assert not loaded.record_no_more(), "nothing was recorded yet, so it is not recordings that the memory lacks"
    plan = plan_for(loaded.family, clip(), loaded.family.presets["pab246"], "float32")
    loaded.recorder = LoopRecorder(capture=lambda: run_again)
    for _ in range(2):
        run = loaded.recorder.wrap(
            lambda latents, _step, _texts: latents, kind=(), num_steps=1, state=BroadcastState(plan, "full")
        )
        run(torch.zeros(1), 0, {})
    assert loaded.recorder.recordings == 1
    assert loaded.record_no_more()
    assert (loaded.recorder.recordings, loaded.recorder.stopped) == (0, True)
    assert not loaded.record_no_more()


@dataclass(frozen=True)
class Counted:
    """A model that writes a mark for each of its passes.

    `full_at`: the pass at which the last rank raises `error`, once: its device has no more memory, or cannot record.
    `full_decode`: the clip, counted from 1, that the first rank cannot decode, once.
    """

    model: Any
    marks: Path
    full_at: int | None
    full_decode: int | None
    error: type[RuntimeError]
    made: list[int] = field(default_factory=list)
    decoded: list[int] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, *arguments: Any) -> Any:
        with self.marks.open("a") as file:
            file.write(".")
        self.made.append(1)
        self.raise_once(len(self.made) == self.full_at, rank=world_size() - 1)
        return self.model.predict(*arguments)

    def decode(self, *arguments: Any) -> Any:
        self.decoded.append(1)
        self.raise_once(len(self.decoded) == self.full_decode, rank=0)
        return self.model.decode(*arguments)

    def raise_once(self, now: bool, *, rank: int) -> None:
        told = self.marks.with_name("told")
        here = not dist.is_initialized() or dist.get_rank() == rank
        if here and now and not told.exists():
            told.touch()
            raise self.error("tried to hold a recording")


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


Full = tuple[int | None, int | None, type[RuntimeError]]


def load_counted(marks: Path, full: Full, request: LoadRequest) -> Counted:
    return Counted(load_tiny(request), marks, *full)


def find_counted(name: str, *, marks: Path, full: Full) -> Family:
    return replace(TINY, name=name, load=partial(load_counted, marks, full), records_loops=True)


def rendered(
    folder: Path,
    mesh: Mesh,
    record_loops: str,
    full_at: int | None = None,
    broadcast: str = "pab",
    error: type[RuntimeError] = torch.OutOfMemoryError,
    *,
    full_decode: int | None = None,
    clips: int = 4,
    batch: int = 1,
) -> tuple[list[Any], list[Any], int]:
    """Renders clips of a kind. Returns their records, their videos, and how many passes each rank made."""
    items = [row(number, prompt="a b c"[: 1 + number], broadcast=broadcast) for number in range(clips)]
    output, marks = folder / "out", folder / "marks"
    bucket = write_shard(str(output), items)
    job = render_job(str(output), mesh=mesh, baseline=False, record_loops=record_loops, batch=batch)
    job = replace(job, find_family=partial(find_counted, marks=marks, full=(full_at, full_decode, error)))
    ranks = mesh.num_ranks
    outcome = job() if ranks == 1 else run_on_forked_ranks(job, folder / "jobs", ranks=ranks)[0]
    assert {type(each) for each in outcome.clips} <= {Rendered, Skipped}
    records = [bucket.read_json(layout.record(each.key)) for each in items]
    videos = [read_video(output / record["video"]["path"], 48, 32) for record in records]
    return records, videos, marks.stat().st_size // ranks


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(sp=2), Mesh(cfg=2)], ids=str)
def test_jobs_record_loops_and_end_with_the_same_videos(tmp_path: Path, mesh: Mesh) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "recorded").mkdir()
    plain, expected, passes = rendered(tmp_path / "plain", mesh, "off")
    records, videos, more = rendered(tmp_path / "recorded", mesh, "on")
    assert passes == 4 * STEPS
    assert more == 5 * STEPS, "the second clip is recorded, which calls its steps, and then replayed"
    for mine, beside, video, other in zip(records, plain, videos, expected, strict=True):
        assert mine["counted"] == beside["counted"]
        assert np.abs(video.astype(int) - other.astype(int)).max() <= 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_job_that_cannot_record_goes_on_without_and_keeps_as_much(tmp_path: Path, error: type[RuntimeError]) -> None:
    # In the second clip, while it is recorded.
    records, videos, passes = rendered(tmp_path, Mesh(), "on", full_at=STEPS + 3, error=error)
    assert passes == STEPS + 3 + 3 * STEPS
    assert [record["execution"]["keep"] for record in records] == ["full"] * 4
    assert [record["plan"].get("rendered", "pab") for record in records] == ["pab"] * 4
    assert len(videos) == 4


def test_a_job_that_cannot_decode_beside_its_recordings_records_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else each third clip would be recorded, and each fourth not be decoded at first."""
    _, _, passes = rendered(tmp_path, Mesh(), "on", full_decode=3, clips=6)
    assert passes == 6 * STEPS + STEPS, "the second one was recorded"
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "event=out_of_memory" in line]
    assert 'clip=clip.2 error="tried to hold a recording" next="no recorded loops"' in told


def test_ranks_that_cannot_decode_beside_their_recordings_end_and_the_next_start_records_none(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"clip\.2: out of memory .* the next start renders it with no recorded loops"):
        rendered(tmp_path, Mesh(sp=2), "on", full_decode=3)
    (tmp_path / "marks").unlink()
    records, _, passes = rendered(tmp_path, Mesh(sp=2), "on", full_decode=3)
    assert passes == 2 * STEPS, "two clips were left, none of them recorded"
    assert [record["attempt"] for record in records] == [1] * 4


@pytest.mark.parametrize(
    ("full", "error", "event", "clips", "again"),
    [
        ({"full_decode": 5}, torch.OutOfMemoryError, "out_of_memory", "clip.4, clip.5", STEPS),
        ({"full_at": STEPS + 3}, torch.OutOfMemoryError, "out_of_memory", "clip.2, clip.3", 3 - STEPS),
        ({"full_at": STEPS + 3}, RuntimeError, "loop_not_recorded", "clip.2, clip.3", 3 - STEPS),
    ],
)
def test_a_batch_that_fails_beside_recordings_is_rendered_again_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], full: dict[str, int], error: type[RuntimeError], event: str,
    clips: str, again: int,
) -> None:  # fmt: skip
    records, _, passes = rendered(tmp_path, Mesh(), "on", error=error, clips=8, batch=2, **full)
    assert passes == 5 * STEPS + again, "four batches, the second one recorded or tried to, the one that failed anew"
    log = capsys.readouterr().err
    (told,) = [line for line in log.splitlines() if f"event={event}" in line]
    assert f'clip="{clips}" error="tried to hold a recording" next="no recorded loops"' in told
    assert "batch_broken" not in log
    assert [record["batch"]["size"] for record in records] == [2] * 8


def test_ranks_that_share_a_batch_end_too_and_its_clips_are_not_counted_as_tried(tmp_path: Path) -> None:
    told = r"clips clip\.4, clip\.5: out of memory on one of their ranks; the next start renders them with no recorded"
    with pytest.raises(RankError, match=told):
        rendered(tmp_path, Mesh(sp=2), "on", full_decode=5, clips=8, batch=2)
    (tmp_path / "marks").unlink()
    records, _, passes = rendered(tmp_path, Mesh(sp=2), "on", full_decode=5, clips=8, batch=2)
    assert passes == 2 * STEPS, "two batches were left, none of them recorded"
    assert [record["attempt"] for record in records] == [1] * 8


@pytest.mark.parametrize("full_at", [3, 3 * STEPS])
def test_an_error_of_a_loop_that_is_not_being_recorded_fails_its_clip(tmp_path: Path, full_at: int) -> None:
    with pytest.raises(AssertionError, match="Failed"):
        rendered(tmp_path, Mesh(), "on", full_at=full_at, error=RuntimeError)


@pytest.mark.parametrize(
    ("broadcast", "error", "told"),
    [
        ("pab", torch.OutOfMemoryError, "out of memory"),
        ("none", torch.OutOfMemoryError, "out of memory"),
        ("pab", RuntimeError, "loop not recorded"),
    ],
)
def test_ranks_that_cannot_record_end_and_the_next_start_records_none(
    tmp_path: Path, broadcast: str, error: type[RuntimeError], told: str
) -> None:
    with pytest.raises(RankError, match=rf"clip\.1: {told} .* the next start renders it with no recorded loops"):
        rendered(tmp_path, Mesh(sp=2), "on", full_at=STEPS + 3, broadcast=broadcast, error=error)
    (tmp_path / "marks").unlink()
    records, _, passes = rendered(tmp_path, Mesh(sp=2), "on", full_at=STEPS + 3, broadcast=broadcast)
    assert passes == 3 * STEPS, "three clips were left, none of them recorded, which would call its steps again"
    assert [record["execution"]["keep"] for record in records] == ["full"] * 4
    assert [record["attempt"] for record in records] == [1] * 4
    assert ["out_of_memory" in record["plan"] for record in records] == [False] * 4
