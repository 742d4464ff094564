"""What is added to the rows of a source: settings, sweeps, templates, and which rows are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from manifests.accept import accept, validate
from manifests.alikes import width_and_height
from manifests.build import BuiltManifest, build
from manifests.errors import ManifestError
from manifests.rules import FamilyRules
from manifests.shaping import Shaping, read_settings, read_sweeps
from manifests.sources.options import SourceOptions

SOURCE = "prompt,seed,height,clip_id\na kite,4,,a\na lamp,,64,b\n"


def shaped(tmp_path: Path, shaping: Shaping, source: str = SOURCE) -> tuple[list[dict[str, Any]], BuiltManifest]:
    (tmp_path / "a.csv").write_text(source)
    made = build(
        str(tmp_path / "a.csv"), tmp_path / "b.parquet", shaping=shaping, errors_path=tmp_path / "e", overwrite=True
    )
    return pq.read_table(tmp_path / "b.parquet").to_pylist(), made


def test_defaults_fill_what_rows_leave_out_and_constants_hold_in_all(tmp_path: Path) -> None:
    rows, made = shaped(
        tmp_path, Shaping(defaults={"height": "48", "fps": "8"}, constants={"seed": "9", "set": "mine"})
    )
    assert rows == [
        {"prompt": "a kite", "seed": 9, "height": 48, "clip_id": "a", "fps": 8, "set": "mine"},
        {"prompt": "a lamp", "seed": 9, "height": 64, "clip_id": "b", "fps": 8, "set": "mine"},
    ]
    assert made.warnings == ("height: 1 of 2 rows have their own, which stays; --set height=... sets it in all",)


def test_sweeps_make_a_clip_of_every_combination_with_ids_of_their_own(tmp_path: Path) -> None:
    sweeps = {"guidance_scale": ("4", "5.5"), "broadcast": ("none", "pab246")}
    rows, made = shaped(tmp_path, Shaping(sweeps=sweeps, seeds=2))
    assert (made.num_source_rows, made.num_rows, len(rows)) == (2, 16, 16)
    assert [(row["guidance_scale"], row["broadcast"], row["seed"]) for row in rows[:4]] == [
        (4.0, "none", 4), (4.0, "none", 5), (4.0, "pab246", 4), (4.0, "pab246", 5),
    ]  # fmt: skip
    assert [row["seed"] for row in rows[8:10]] == [0, 1]
    assert rows[7]["clip_id"] == "a-guidance_scale5.5-broadcastpab246-seed5"
    assert len({row["clip_id"] for row in rows}) == 16


def test_swept_texts_that_are_alike_or_long_give_ids_that_differ_and_are_allowed(
    tmp_path: Path, rules: dict[str, FamilyRules]
) -> None:
    texts = ("blur!", "blur?", "Noise", "noise", "plain", "no words.", "so many words " * 6)
    rows, _ = shaped(tmp_path, Shaping(sweeps={"negative_prompt": texts}))
    ids = [row["clip_id"] for row in rows]
    assert len({name.lower() for name in ids}) == 14
    assert ids[0] == "a-negative_promptblur__b7988374"
    assert ids[4] == "a-negative_promptplain"
    assert validate(str(tmp_path / "b.parquet"), rules, default_model="wan").num_rows == 14
    told = r"clip_id='a+…': gets up to 133 characters with the values of its clips at its end, at most 128 are allowed"
    with pytest.raises(ManifestError, match=told):
        shaped(tmp_path, Shaping(seeds=11), f"prompt,clip_id\na kite,{'a' * 126}\n")


def test_values_of_a_sweep_share_their_noise_only_where_rows_have_a_seed(
    tmp_path: Path, rules: dict[str, FamilyRules]
) -> None:
    sweeps, source = {"guidance_scale": ("4", "5")}, "prompt,clip_id\na kite,a\n"

    def seeds(**more: Any) -> set[int]:
        shaped(tmp_path, Shaping(sweeps=sweeps, **more), source)
        accept(str(tmp_path / "b.parquet"), rules, default_model="wan", sink=tmp_path / "c.parquet")
        return set(pq.read_table(tmp_path / "c.parquet")["seed"].to_pylist())

    # As docs/manifests.md says of `--sweep`.
    assert len(seeds()) == 2
    assert seeds(defaults={"seed": "7"}) == {7}


def test_seeds_that_would_count_beyond_int64_are_refused(tmp_path: Path) -> None:
    last, source = 2**63 - 1, "prompt,seed\na kite,{}\n"
    rows, _ = shaped(tmp_path, Shaping(seeds=2), source.format(last - 1))
    assert [row["seed"] for row in rows] == [last - 1, last]
    assert [row["seed"] for row in shaped(tmp_path, Shaping(seeds=2), source.format("1e3"))[0]] == [1000, 1001]
    told = rf"line 2: seed={last}: 2 seeds counted on from it go beyond int64; give a smaller one"
    with pytest.raises(ManifestError, match=told):
        shaped(tmp_path, Shaping(seeds=2), source.format(last))
    with pytest.raises(ManifestError, match="2 seeds counted on from it go beyond int64"):
        shaped(tmp_path, Shaping(seeds=2, constants={"seed": str(last)}))


def test_rows_are_taken_from_the_start_or_by_chance_and_the_same_ones_each_time(tmp_path: Path) -> None:
    source = "prompt\n" + "".join(f"kite {i}\n" for i in range(50))
    assert [row["prompt"] for row in shaped(tmp_path, Shaping(limit=2), source)[0]] == ["kite 0", "kite 1"]
    taken = [shaped(tmp_path, Shaping(sample=5, sample_seed=seed), source)[0] for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2]
    assert len(taken[0]) == 5
    assert taken[0] == sorted(taken[0], key=lambda row: int(row["prompt"].split()[1]))
    assert len(shaped(tmp_path, Shaping(sample=99), source)[0]) == 50
    # Rows behind the limit are not looked at.
    assert len(shaped(tmp_path, Shaping(limit=1), "prompt,fps\na,8\nb,wrong\n")[0]) == 1


def test_a_template_is_put_around_every_text_of_a_prompt(tmp_path: Path) -> None:
    template = Shaping(template="{prompt}, in {style} {{4k}}")
    rows, _ = shaped(tmp_path, template, "prompt,style\na kite,ink\n|0| a shore |2| a storm,oil\n")
    assert [row["prompt"] for row in rows] == [
        "a kite, in ink {4k}", "|0| a shore, in oil {4k} |2| a storm, in oil {4k}",
    ]  # fmt: skip
    with pytest.raises(ManifestError, match=r"line 2: the template names \{mood\}, the row has 'prompt', 'style'"):
        shaped(tmp_path, Shaping(template="{prompt} {mood}"), "prompt,style\na kite,ink\n")


def test_open_soras_words_end_prompts_that_do_not_say_them(tmp_path: Path) -> None:
    words = Shaping(aesthetic_score="6.5", motion_score="5.0", camera_motion="pan left")
    rows, _ = shaped(tmp_path, words, "prompt\na kite\na lamp aesthetic score: 4.0.\n")
    assert [row["prompt"] for row in rows] == [
        "a kite aesthetic score: 6.5. motion score: 5.0. camera motion: pan left.",
        "a lamp aesthetic score: 4.0. motion score: 5.0. camera motion: pan left.",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"constants": {"fps": "fast"}}, "fps='fast', an integer within int64 is needed"),
        ({"sweeps": {"guidance_scale": ("4", "x")}}, "guidance_scale='x', a finite number is needed"),
        ({"sweeps": {"prompt": ("a", "b")}}, "'prompt' cannot be swept, allowed: negative_prompt, model"),
        ({"sweeps": {"seed": ("1", "2")}, "seeds": 2}, "seeds are counted and swept; leave out one of the two"),
        ({"limit": 1, "sample": 1}, "either the first rows or a sample"),
        ({"seeds": 10_001}, "10,001 clips of each row, at most 10,000 are allowed"),
        ({"template": "a picture"}, "needs {prompt} where the row's prompt goes"),
    ],
)
def test_what_cannot_be_added_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Shaping(**options)
    assert told in str(caught.value)


def test_settings_and_sweeps_are_read_from_text() -> None:
    assert read_settings(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    assert read_sweeps(["a=1, 2,3"]) == {"a": ("1", "2", "3")}
    for wrong in (["a"], ["=a"], ["a=1", "a=2"]):
        with pytest.raises(ValueError, match=r"needs NAME=VALUE|more than once"):
            read_settings(wrong)
    for wrong in (["a=1,,2"], ["a=1,1"], ["a="]):
        with pytest.raises(ValueError, match="needs NAME=A,B,C with different values"):
            read_sweeps(wrong)


def test_columns_that_look_like_settings_are_told_and_read_so_on_request(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text(
        "prompt,num_inference_steps,cfg_scale,resolution,duration,negative\na kite,30,7.5,832x480,5,blurry\n"
    )
    told = build(str(source), tmp_path / "b.parquet").warnings
    assert told == tuple(
        f"column {name!r} changes nothing, it is kept as an extra column; if {meant} is meant: {how}"
        for name, meant, how in (
            ("num_inference_steps", "num_steps", "--map or --column num_steps=num_inference_steps"),
            ("cfg_scale", "guidance_scale", "--map or --column guidance_scale=cfg_scale"),
            ("resolution", "height and width", "--map"),
            ("duration", "num_frames", "--map"),
            ("negative", "negative_prompt", "--map or --column negative_prompt=negative"),
        )
    )
    options = SourceOptions(map_alikes=True)
    made = build(str(source), tmp_path / "c.parquet", options=options, frames_of=lambda *_: 81)
    (row,) = pq.read_table(tmp_path / "c.parquet").to_pylist()
    wanted = {
        "num_steps": 30,
        "guidance_scale": 7.5,
        "width": 832,
        "height": 480,
        "num_frames": 81,
        "negative_prompt": "blurry",
    }
    assert {name: row[name] for name in wanted} == wanted
    assert "column 'cfg_scale' is read as 'guidance_scale'" in made.warnings
    assert not any("changes nothing" in warning for warning in made.warnings)


def test_sizes_are_read_as_they_are_written() -> None:
    for text in ("1280x720", "1280*720", "1280 x 720", "(1280, 720)", [1280, 720], "1280,720"):
        assert width_and_height(text) == (1280, 720), text
    for wrong in ("720p", "16:9", "", None, [1, 2, 3]):
        with pytest.raises(ValueError, match="width and height are needed, such as 1280x720"):
            width_and_height(wrong)
