"""The model of time: two cards as they were measured, limits that no mesh passes, and its command."""

import json
from pathlib import Path

import pytest

from benchmarks import scaling
from jobs.settings import Mesh
from pipeline.planning.scaling import BEFORE, H100, PACKED, Tokens, exchanged

CASES = [
    (clip, mesh)
    for clip in (*scaling.MEASURED, *scaling.ON_H100, *scaling.LARGE)
    for mesh in clip.seconds
    if mesh.num_ranks > 1
]


@pytest.mark.parametrize(("clip", "mesh"), CASES, ids=lambda value: str(getattr(value, "title", value)))
def test_two_cards_are_expected_as_they_were_measured_within_five_percent(clip, mesh):
    (model_s,) = [model_s for found, _, model_s in scaling.checks(clip) if found == mesh]
    assert model_s == pytest.approx(clip.seconds[mesh], rel=0.05)


RECORDED = [
    (clip, mesh) for clip in (*scaling.ON_H100, *scaling.ON_H200, *scaling.ON_FOUR_H200) for mesh in clip.recorded
]


@pytest.mark.parametrize(("clip", "mesh"), RECORDED, ids=lambda value: str(getattr(value, "title", value)))
def test_recorded_loops_take_what_the_device_alone_is_expected_to_take(clip, mesh):
    (model_s,) = [model_s for found, _, model_s in scaling.recorded_checks(clip) if found == mesh]
    found = scaling.predicted(clip, mesh, 1, recorded=True)
    assert model_s == found.device_s == pytest.approx(clip.recorded[mesh], rel=0.05)
    if mesh == scaling.BOTH:
        assert found.seconds < 0.85 * found.host_s, "the host alone would take longer"


@pytest.mark.parametrize("clip", scaling.FOUR, ids=lambda clip: clip.title)
def test_four_cards_are_expected_to_wait_for_the_host(clip):
    for mesh, seconds, model_s in scaling.checks(clip):
        assert model_s == pytest.approx(seconds, rel=0.2)
        assert scaling.predicted(clip, mesh, 1).host_s == model_s


def test_what_has_much_work_a_kernel_does_not_wait_for_the_host():
    (wan,) = [clip for clip in scaling.MEASURED if clip.family == "wan"]
    large = [clip for clip in scaling.MEASURED if clip.size == (720, 1280, 51)]
    for clip, mesh in ((wan, Mesh(cfg=2, sp=2)), (large[0], Mesh(cfg=2, sp=2)), (scaling.MEASURED[0], Mesh(sp=2))):
        found = scaling.predicted(clip, mesh, 1)
        assert found.host_s < found.seconds


@pytest.mark.parametrize("clip", scaling.MEASURED[:2], ids=lambda clip: clip.broadcast)
def test_no_mesh_beats_the_rank_that_has_most_frames(clip):
    for mesh, nodes in scaling.MESHES:
        found = scaling.predicted(clip, mesh, nodes)
        assert found.times_faster < mesh.cfg * 15 / -(-15 // mesh.sp) * 1.1, (
            "a tenth: attention over time is split by patches"
        )
        assert 0 <= found.exchange_s < found.seconds
        assert (found.exchange_s == 0) == (mesh.sp == 1)
        before = scaling.predicted(clip, mesh, nodes, copies=BEFORE)
        assert before.seconds >= found.seconds
        assert before.sent_bytes >= found.sent_bytes


def test_nodes_apart_exchange_more_slowly():
    clip, mesh = scaling.MEASURED[0], Mesh(sp=8)
    near, apart = (scaling.predicted(clip, mesh, nodes) for nodes in (1, 2))
    assert near.sent_bytes == apart.sent_bytes
    assert near.exchange_s < apart.exchange_s
    branches = [scaling.predicted(clip, Mesh(cfg=2, sp=4), nodes).exchange_s for nodes in (1, 2)]
    assert branches[0] == branches[1], "a branch of guidance stays on a node"


def test_bytes_and_copies_are_those_of_the_arithmetic():
    tokens = Tokens(places=15, others=10, width=4, there=1, value_bytes=2, share=0.0)
    sent, copied = exchanged(tokens, 2, 2, PACKED)
    assert sent == (8 * 5 + 5 * 7) * 4 * 2 * 2
    assert copied == 2 * 2 * (8 * 10 * 4 * 2 * 2)
    padded, more = exchanged(tokens, 2, 2, BEFORE)
    assert padded == (8 * 5 + 5 * 8) * 4 * 2 * 2
    assert more == 3 * copied
    assert H100.rows_apart > 1


def test_the_command_takes_rows_of_bench_too(tmp_path: Path, capsys):
    rows = [
        {"group": "open_sora", "side": "ours", "status": "measured", "words": words, "seconds": seconds}
        for words, seconds in (("compiled none", 8.0), ("compiled none sp2", 4.5), ("compiled none int8", 9.0))
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"rows": rows}))
    scaling.main(["--bench", str(tmp_path / "bench.json")])
    told = capsys.readouterr().out
    assert "measured sp2: 4.50 s; the model: 4." in told
    assert "cfg2 sp8, 2 nodes" in told
    scaling.main([])
    told = capsys.readouterr().out
    assert told.count("measured cfg2:") == sum(
        scaling.CFG2 in clip.seconds for clip in scaling.MEASURED + scaling.ON_H100 + scaling.LARGE
    )
    assert told.count("measured cfg2 sp2 recorded:") == sum(
        scaling.BOTH in clip.recorded for clip in scaling.ON_H100 + scaling.ON_FOUR_H200
    )


def test_the_command_takes_files_of_many_gpus_too(tmp_path: Path, capsys):
    clip = {"height": 720, "width": 1280, "num_frames": 51, "num_steps": 30}
    line = {"group": "open_sora", "side": "ours", "status": "measured", "clip": clip}
    alone = {
        "lines": [line | {"words": "compiled pab246 float8", "seconds": 12.0}, {"name": "x", "skipped": "no time"}]
    }
    four = [
        ("compiled pab246 float8 cfg2 sp2", 3.5, 40.0),
        ("compiled pab246 float8 recorded cfg2 sp2", 3.3, 40.0),
        ("compiled pab246 float8 recorded", 12.3, 0.0),
        ("compiled pab246 float8 inturn sp4", 3.4, 60.0),
    ]
    shared = {"lines": [line | {"words": words, "seconds": s, "sent_gb": gb} for words, s, gb in four]}
    for name, document in (("a.json", alone), ("b.json", shared)):
        (tmp_path / name).write_text(json.dumps(document))
    scaling.main(["--bench", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    told = capsys.readouterr().out
    assert "Open-Sora 1.2: compiled pab246 float8, 720x1280, 51 frames, 30 steps" in told
    assert "measured cfg2 sp2: 3.50 s; the model: 3." in told
    assert "measured cfg2 sp2 recorded: 3.30 s; the model: 3." in told
    assert "3.64x one" in told, "one GPU's time is that of its loop without recording"
    assert "measured sp4 inturn: 3.40 s; no model, 3.53x one" in told, "nothing is expected of rows in turn"
    assert "sent cfg2 sp2: 40.00 GB; planned" in told
