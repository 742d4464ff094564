"""Headlines: hand-made records of which everything is known, joined over starts and jobs."""

from typing import Any

from jobs.reports.report_headline import exchanges, headline, spans_of


def record(start: int, begun: int, ended: int, frames: int = 10, **others: Any) -> dict[str, Any]:
    return {
        "started_at": f"2026-01-01T00:00:{begun:02}+00:00",
        "recorded_at": f"2026-01-01T00:00:{ended:02}.500+00:00",
        "job": {"job_id": "7", "start": start, "rank": 0},
        "video": {"num_frames": frames},
        "steps": {"seconds": [1.0, 3.0]},
    } | others


def test_a_job_s_headline_is_from_its_first_prompt_to_its_last_record_without_pauses():
    records = [record(0, 2, 6), record(0, 5, 9, frames=20), record(1, 40, 44)]
    starts = [{"job_id": "7", "start": 0, "prompts_s": 1.5}, {"job_id": "7", "start": 1}]
    spans = spans_of(records, starts, ranks=2)
    assert [(round(span["ended"] - span["begun"], 3), span["clips"], span["frames"]) for span in spans] == [
        (9.0, 2, 30),
        (4.5, 1, 10),
    ]
    told = headline(spans)
    assert told is not None
    assert (told["seconds"], told["frames"], told["clips"], told["ranks"]) == (13.5, 40, 3, 2.0)
    assert told["frames_per_second"] == round(40 / 13.5, 3)
    assert told["clips_per_gpu_hour"] == round(3600 * 3 / 27, 3)
    assert told["later_frames_per_second"] == round(20 / 3, 3), (
        "of the first start the second clip, 3 s after the first"
    )


def test_jobs_side_by_side_take_the_time_of_one_and_the_ranks_of_all():
    side_by_side = [
        {"begun": 0.0, "ended": 10.0, "ranks": 2, "clips": 5, "frames": 50, "later_s": 0.0, "later_frames": 0}
    ] * 2
    late = {"begun": 8.0, "ended": 20.0, "ranks": 1, "clips": 1, "frames": 20, "later_s": 0.0, "later_frames": 0}
    told = headline([*side_by_side, late])
    assert told is not None
    assert (told["seconds"], told["frames_per_second"]) == (20.0, 6.0)
    assert told["ranks"] == (2 * 20 + 12) / 20
    assert headline([]) is None


def test_exchanges_are_summed_over_the_records_that_tell_of_them():
    told = {"exposed_s": 1.0, "hidden_s": 0.25}
    found = exchanges([record(0, 1, 2, exchanges=told), record(0, 1, 2, exchanges=told), record(0, 1, 2)])
    assert found is not None
    assert (found["exposed_s"], found["hidden_s"], found["exposed_share"], found["clips"]) == (2.0, 0.5, 0.25, 2)
    assert exchanges([record(0, 1, 2, exchanges=None)]) is None
