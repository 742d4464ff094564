"""Which loops a job records: `--record-loops` as the family that a rank loads has it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.rendering.loaded_family import load_family, loop_recorder
from pab.broadcast.state import BroadcastState
from pab.execution.choice import Execution
from pab.families import FAMILIES
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import plan_for
from pab.sampling.recorded_loop import LoopRecorder, run_again
from pab.sampling.recorded_sizes import MAX_ROW_TOKENS
from tests.jobs.world import render_job
from tests.pab.worlds import clip


@pytest.mark.parametrize(("said", "small", "large"), [("auto", True, False), ("on", True, True), ("off", False, False)])
def test_loops_are_recorded_as_the_run_says(tmp_path: Path, said: str, small: bool, large: bool) -> None:
    settings = render_job(str(tmp_path)).settings
    settings = replace(settings, render=replace(settings.render, record_loops=said))
    family = FAMILIES["demo"]
    loaded = load_family(family, settings, torch.device("cpu"))
    assert loaded.recorder is None, "only compiled blocks in bfloat16 on a GPU are recorded"
    loaded.recorder = loop_recorder(Execution(records=True), said)
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
        assert (found.recorder is not None) == recorded
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
    assert loaded.recorder is None
    assert not loaded.record_no_more()
