"""The table of `benchmarks.real_time`: what it tells of a plan, of jobs and of rows, and of those that are missing."""

from __future__ import annotations

from benchmarks.real_time_table import READERS, rows_of, table
from tests.test_real_time import about


def test_the_table_tells_a_plan_with_its_quality_and_what_its_search_had_not_done() -> None:
    found, beside_it = rows_of("plan", {"about": about(28.2, 29.0)}, 101.0)
    assert found[0] == "searched plan abc"
    assert found[5:] == ("28.2 (worst 27.2)", "101.0",
                         "28.5 dB on the prompt it was searched on; not as good as PAB246")  # fmt: skip
    assert (beside_it[0], beside_it[5]) == ("pab246 beside it", "29.0 (worst 28.0)")
    cut_short = {"about": about(30.0, 29.0) | {"unfinished": ["preset pab246 on held-out prompts"]}}
    assert (
        "at least as good as PAB246; a bounded search, not done: preset pab246" in rows_of("plan", cut_short, 1.0)[0][7]
    )
    assert READERS["plan"].missing(cut_short) == "the search was ended before: preset pab246 on held-out prompts"


def test_the_table_tells_a_job_as_the_docs_do() -> None:
    row = {
        "status": "measured", "name": "job ours: compiled pab246 float8 dp2", "seconds": 2.55, "frames_per_second": 20.0,
        "later_frames_per_second": 23.9, "clips_per_gpu_hour": 706.0, "device_busy": {"share": 0.991}, "exposed_s": None,
        "row_s": 60.0,
    }  # fmt: skip
    (told,) = rows_of("bench", {"rows": [row]}, 70.0)
    assert told[1:3] == ("2.550", "20.0")
    assert told[7] == "706 clips per GPU-hour, 23.9 frames/s without compiling, 99.1 % busy"
    late = {"status": "not run", "name": "job ours: x", "why": "no time left of 9 s (--seconds)"}
    assert READERS["bench"].missing({"rows": [row, late]}) == "not run: no time left of 9 s (--seconds)"


def test_rows_without_time_or_memory_are_told_and_the_whole_clip_is_the_fastest_with_its_decoding() -> None:
    rows = [
        {"name": "compiled pab246 cfg2, 480x848x51", "status": "measured", "seconds": 2.69, "times_one_card": 1.95,
         "frames_per_second": 19.0, "exposed_s": 0.1, "quality_to_plain_db": 29.2, "took_s": 15.0, "clips_at_once": 1,
         "clip": {"num_frames": 51}, "ranks": 2},
        {"name": "compiled x cfg2, 480x848x51", "skipped": "no time left (--seconds)", "took_s": 0.0},
    ]  # fmt: skip
    decoded = [{"name": f"decode, {n} ranks", "ranks": n, "seconds": 0.5 / n, "took_s": 3.0} for n in (1, 2)]
    found = {"shared": {"lines": rows}, "decode": {"lines": decoded}}
    document = {
        "size": "full", "ranks": 2, "calls": [],
        "parts": {name: {"status": "measured", "why": "", "left_out": {}, "commands": {
            name: {"status": "measured", "why": "", "result": each, "rows": rows_of("rows", each, 9.0)}}}
            for name, each in found.items()},
    }  # fmt: skip
    told = table(document)
    assert "both 2.94 s; its 51 frames play 2.12 s" in told
    (line,) = [line for line in told.splitlines() if line.startswith("shared") and "pab246" in line]
    assert line.split()[5:] == ["2.690", "19.0", "1.95x", "0.100", "29.2", "15.0"]
    assert "decode  decode, 2 ranks                   0.250    -         2.00x" in told
    assert READERS["rows"].missing({"lines": rows}) == "1 of 2 rows: no time left (--seconds)"
    failed = {"name": "y", "status": "failed", "why": "out of memory", "took_s": 1.0}
    assert READERS["rows"].missing({"lines": [failed]}) == "1 of 1 rows failed, the first: y: out of memory"
