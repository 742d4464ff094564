"""Which loops a job records: `--record-loops` as the family that a rank loads has it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jobs.rendering.loaded_family import load_family, loop_recorder
from pab.execution.choice import Execution
from pab.families import FAMILIES
from pab.parallel.mesh import Axis, NodeGroup
from pab.sampling.denoise import plan_for
from tests.jobs.world import render_job
from tests.pab.worlds import clip


@pytest.mark.parametrize(
    ("said", "small", "shared"), [("auto", True, False), ("on", True, True), ("off", False, False)]
)
def test_loops_are_recorded_as_the_run_says(tmp_path: Path, said: str, small: bool, shared: bool) -> None:
    settings = render_job(str(tmp_path)).settings
    settings = replace(settings, render=replace(settings.render, record_loops=said))
    family = FAMILIES["demo"]
    loaded = load_family(family, settings, torch.device("cpu"))
    assert loaded.recorder is None, "only compiled blocks in bfloat16 on a GPU are recorded"
    loaded.recorder = loop_recorder(Execution(records=True), said)
    request = clip()
    plan = plan_for(family, request, family.presets["pab246"], "float32")
    for group, recorded in ((NodeGroup(), small), (NodeGroup(clip=Axis(size=2)), shared)):
        found = loaded.loop_settings(request, plan, group, clips=1, keep="full").recorder
        assert (found is not None) == recorded
