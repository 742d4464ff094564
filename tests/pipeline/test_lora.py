"""`--lora`: read, looked at before anything is written, part of digests, and added by the job."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pab.families import FAMILIES
from pab.families.tiny_weights import write_tiny_weights
from pab.weights.lora import Lora
from pipeline.exits import UsageError
from pipeline.run.build import build_settings
from pipeline.run.options import choose
from pipeline.run.rules import run_rules
from pipeline.run.settings import RunSettings
from pipeline.run.weights import RunWeights, WeightsLookup
from tests.pipeline.command import Command, records

Manifest = Callable[..., Path]
KEY = "diffusion_model.blocks.0.self_attn.q.diff"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Wan of the published depth."""
    folder = tmp_path_factory.mktemp("weights") / "wan"
    write_tiny_weights("wan", folder)
    return str(folder)


def settings_of(*loras: str, model: str = "wan", weights: str | None = None) -> RunSettings:
    flags = {"cluster": "local", "device": "cpu", "model": model, "lora": list(loras) or None}
    return build_settings("m.parquet", choose(flags | ({"weights": [weights]} if weights else {}), {}))


def lora_file(folder: Path, name: str = "style.safetensors", key: str = KEY, shape: tuple[int, ...] = (24, 24)) -> Path:
    save_file({key: torch.full(shape, 0.3)}, folder / name)
    return folder / name


def test_loras_belong_to_the_model_or_to_the_family_that_is_named(tmp_path: Path) -> None:
    style = str(lora_file(tmp_path))
    found = settings_of(f"{style}:0.5", f"ltx={style}", "wan=some/model/fast.safetensors@v2:transformer").render.loras
    assert found == {
        "wan": (
            Lora(place=style, strength=0.5, component="transformer"),
            Lora(place="some/model/fast.safetensors@v2", component="transformer"),
        ),
        "ltx": (Lora(place=style, component="transformer"),),
    }
    experts = settings_of(f"{style}:transformer", f"{style}:transformer_2", model="wan22_a14b").render.loras
    assert [lora.component for lora in experts["wan22_a14b"]] == ["transformer", "transformer_2"]


@pytest.mark.parametrize(
    ("loras", "model", "message"),
    [
        (["a.safetensors"], "demo", "family demo takes no LoRA, these do: .*wan"),
        (["latte=a.safetensors"], "wan", "family latte takes no LoRA"),
        (["a.safetensors"], "wan22_a14b", "wan22_a14b has two transformers; add :transformer or :transformer_2"),
        (["a.safetensors:transformer_2"], "wan", "wan has no component 'transformer_2'; say :transformer"),
        (["a.safetensors:0"], "wan", "a strength of 0 adds nothing"),
        (["a.bin"], "wan", "'a.bin' is neither a .safetensors file nor a hub id"),
        (["a.safetensors", "wan=a.safetensors:0.5"], "wan", "wan has this LoRA already; give it once"),
    ],
)
def test_what_cannot_be_added_is_refused(loras: list[str], model: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--lora='{loras[-1]}': .*{message}"):
        settings_of(*loras, model=model)


def test_keys_and_shapes_are_looked_at_before_anything_is_written(
    tmp_path: Path, command: Command, manifest: Manifest, weights: str
) -> None:
    for key, shape, told in (
        ("diffusion_model.blocks.30.ffn.0.diff", (48, 24), "'diffusion_model.blocks.30.ffn.0.diff' fits nowhere"),
        (KEY, (24, 23), f"'{KEY}' changes [24, 23]"),
    ):
        bad = lora_file(tmp_path, "bad.safetensors", key, shape)
        with pytest.raises(UsageError) as caught:
            run_rules(settings_of(str(bad), weights=weights).render)
        assert told in str(caught.value)
        assert str(bad) in str(caught.value)
    url, output = manifest(1, num_frames=[1]), tmp_path / "out"
    code, document = replace(command, weights=Path(weights)).submit(
        url, output, "--model", "wan", "--lora", str(tmp_path / "bad.safetensors")
    )
    assert code != 0
    assert "changes [24, 23]" in document["error"]["message"]
    assert not output.exists()


def test_a_clip_s_digest_names_the_loras_of_its_family_and_nothing_without_them(tmp_path: Path, weights: str) -> None:
    style = str(lora_file(tmp_path))

    def identity(*loras: str) -> str:
        return run_rules(settings_of(*loras, weights=weights).render).rows["wan"].identity()

    plain = identity()
    assert plain == f"weights {FAMILIES['wan'].weights_digest(weights)} precision float32"
    assert identity(f"ltx={style}") == plain, "another family's"
    one, half = identity(style), identity(f"{style}:0.5")
    assert one.startswith(f"weights {FAMILIES['wan'].weights_digest(weights)} loras ")
    assert len({plain, one, half}) == 3


def test_a_run_goes_on_with_the_loras_that_it_began_with(tmp_path: Path, weights: str) -> None:
    wan = FAMILIES["wan"]
    style = Lora(place=str(lora_file(tmp_path)), component="transformer")
    found = WeightsLookup(lambda _: weights, {}, {"wan": (style,)}).find(wan)
    assert found.asked_loras == (style,)
    assert found.loras == (replace(style, digest=found.loras[0].digest),)
    assert RunWeights.read(json.loads(json.dumps(asdict(found)))) == found
    branch = Lora(place="some/model/fast.safetensors", component="transformer")
    pinned = replace(branch, place=f"some/model/fast.safetensors@{'1' * 40}")
    began = replace(found, asked_loras=(branch,), loras=(pinned,))
    again = WeightsLookup(lambda _: weights, {"wan": began}, {"wan": (branch,)}).find(wan)
    assert again.loras[0].place == pinned.place, "the commit that the run began with, and no hub was asked"
    assert again.loras[0].digest
    assert RunWeights.read({"asked": None, "pinned": None, "digest": "d"}).loras == ()


def test_a_job_adds_one_set_samples_in_few_steps_and_the_record_says_so_and_a_row_s_own_come_first(
    tmp_path: Path, command: Command, manifest: Manifest, weights: str
) -> None:
    style, other = lora_file(tmp_path), lora_file(tmp_path, "other.safetensors")
    url = manifest(2, num_frames=[1, 1], num_steps=[None, None], lora=[None, f"{other}:0.25"])
    wan = replace(command, weights=Path(weights))
    flags = ("--model", "wan", "--lora", f"{style}:0.5", "--sampling", "lightning4")
    code, planned = wan.submit(url, tmp_path / "out", *flags, "--dry-run")
    assert (code, planned["jobs"]) == (0, 2)
    (lora,) = planned["loras"]["wan"]
    assert (lora["place"], lora["strength"], lora["component"]) == (str(style), 0.5, "transformer")
    assert [group["lora"] for group in planned["groups"]] == ["", f"{other}:0.25:transformer"]
    for group in planned["groups"]:
        assert {name: group[name] for name in ("sampling", "num_steps", "guided", "broadcast")} == {
            "sampling": "lightning4", "num_steps": 4, "guided": False, "broadcast": "none"
        }  # fmt: skip
    assert all("cfg=1" in facts["mesh"] for facts in planned["meshes"]), "one pass a step: nothing to share by guidance"
    code, _ = wan.submit(url, tmp_path / "out", *flags)
    assert code == 0
    found = records(tmp_path / "out")
    assert found["c0"]["loras"] == [lora]
    (of_row,) = found["c1"]["loras"]
    assert (of_row["place"], of_row["strength"], of_row["component"]) == (str(other), 0.25, "transformer")
    for record in found.values():
        assert (record["clip"]["sampling"], record["clip"]["num_steps"]) == ("lightning4", 4)
        assert len(record["steps"]["seconds"]) == 4
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["pixels"]["--sampling"] == "lightning4"
    assert run["pixels"]["--lora"] == f"{style}:0.5:transformer ({lora['digest']})"
    assert run["weights"]["wan"]["row_loras"] == {f"{other}:0.25": [of_row]}
    code, document = wan.submit(url, tmp_path / "out", "--model", "wan")
    assert code != 0
    assert f"--lora was {style}:0.5:transformer ({lora['digest']}), now none" in document["error"]["message"]


def test_loras_of_a_row_mean_what_the_flag_means_and_are_looked_at_in_the_same_way(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    style, other = str(lora_file(tmp_path)), str(lora_file(tmp_path, "other.safetensors"))
    monkeypatch.chdir(tmp_path)
    rules = run_rules(settings_of(f"{style}:0.5", weights=weights).render)
    of_row = rules.rows["wan"].loras
    assert of_row is not None
    both = of_row(("other.safetensors:0.0000001", style))
    typed = run_rules(settings_of(f"{other}:0.0000001", style, weights=weights).render).rows["wan"]
    assert both.identity == typed.identity() != rules.rows["wan"].identity()
    assert both.text == f"{other}:0.0000001:transformer;{style}:1.0:transformer"
    assert of_row(()).identity == run_rules(settings_of(weights=weights).render).rows["wan"].identity()
    lora_file(tmp_path, "bad.safetensors", KEY, (24, 23))
    for said, message in (
        ("bad.safetensors", f"'{KEY}' changes \\[24, 23\\]"),
        ("style.bin", "'style.bin' is neither a .safetensors file nor a hub id"),
        ("style.safetensors:transformer_2", "wan has no component 'transformer_2'; say :transformer"),
    ):
        with pytest.raises(ValueError, match=message):
            of_row((said,))
    with pytest.raises(ValueError, match="named twice; give it once"):
        of_row((style, f"{style}:0.5"))


def test_rows_of_a_run_that_goes_on_have_the_commits_that_it_began_with(weights: str) -> None:
    wan, at = FAMILIES["wan"], f"some/model/fast.safetensors@{'1' * 40}"
    pinned = Lora(place=at, component="transformer")
    began = RunWeights(
        asked=weights, pinned=weights, digest="d", row_loras={"some/model/fast.safetensors": (pinned,)}
    )  # fmt: skip
    assert RunWeights.read(json.loads(json.dumps(asdict(began)))) == began
    lookup = WeightsLookup(lambda _: weights, {"wan": began})
    (found,) = lookup.find_row_loras(wan, ["some/model/fast.safetensors"])
    assert (found.place, bool(found.digest)) == (at, True)
    assert lookup.found["wan"].row_loras == {"some/model/fast.safetensors": (found,)}
