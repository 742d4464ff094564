"""What a job is told: checked where it is made, and whole when it comes out of a pickle."""

from __future__ import annotations

import pickle

import pytest

from jobs.render_settings import RenderSettings
from jobs.settings import JobSettings, Mesh

RENDER = RenderSettings(precision="float32", device="cpu", family_weights={"wan": "some/model"}, crf=20)
JOB = JobSettings(output="out", run_id="r", mesh=Mesh(sp=2), render=RENDER, deadline_s=60.0)


def test_a_job_that_is_pickled_comes_out_as_it_was() -> None:
    assert pickle.loads(pickle.dumps(JOB)) == JOB


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"crf": 52}, "crf=52, needs a whole number from 0 to 51"),
        ({"max_attempts": 0}, "max_attempts=0, needs a whole number of 1 or more"),
        ({"batch": -1}, "batch=-1, needs 1 or more, or 0"),
    ],
)
def test_values_out_of_bounds_are_refused(changes: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RenderSettings(precision="float32", device="cpu", **changes)
