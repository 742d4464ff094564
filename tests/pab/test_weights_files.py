"""Weights are named by the files that loading reads, and by no others; a folder that is not whole is refused at submit."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pab.broadcast.state import COND
from pab.library.video import DiffusersVideo
from pab.weights.checkpoint import CheckpointError
from pab.weights.digest import weights_digest
from pab.weights.files import loaded_files, weight_files
from tests.pab.every_family import SMALL, family, load, request_of
from tests.pab.library_world import picture
from tests.pab.opened import opened_below

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked what is opened")
FOLDERS = [name for name in SMALL if name != "demo"]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*SMALL)


@pytest.fixture
def wan(weights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(weights / "wan", tmp_path / "wan"))


def named(folder: Path, name: str) -> set[str]:
    """The files that a family's digest is made of."""
    with opened_below(folder) as opened:
        digest(folder, name)
    return opened


def digest(folder: Path, name: str = "wan") -> str:
    return family(name).weights_digest(str(folder))


@pytest.mark.parametrize("name", FOLDERS)
def test_the_files_that_are_hashed_are_those_that_loading_opens(weights: Path, name: str) -> None:
    with opened_below(weights / name) as opened:
        model = load(name, weights)
        # Quoted words: some models open an encoder of their own for them.
        request = replace(request_of(name), prompt='a sign that says "open"')
        model.encode_prompts([request])
        rules = family(name).references
        if isinstance(model, DiffusersVideo) and rules is not None and rules.required:
            # Some read the prompt together with the clip's image.
            given = model.given_image(request, picture())
            if given.own_states is not None:
                given.own_states(COND)
    assert opened == named(weights / name, name)


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "demo_wan"])  # its other parts ship beside it
def test_a_folder_that_holds_nothing_else_keeps_the_digest_that_it_had(weights: Path, name: str) -> None:
    files = {path.relative_to(weights / name).as_posix() for path in (weights / name).rglob("*") if path.is_file()}
    if files == named(weights / name, name):
        assert digest(weights / name, name) == weights_digest(weights / name)


def test_what_loading_does_not_read_changes_no_digest(wan: Path) -> None:
    before = digest(wan)
    (wan / "README.md").write_text("read me")
    (wan / ".gitattributes").write_text("*.safetensors filter=lfs")
    for name in (".git/HEAD", ".cache/huggingface/download/a.metadata", "assets/teaser.png", "vae/.DS_Store"):
        (wan / name).parent.mkdir(parents=True, exist_ok=True)
        (wan / name).write_text("something")
    shutil.copy(wan / "transformer/model.safetensors", wan / "transformer/model.fp16.safetensors")
    (wan / "transformer/model.fp16.safetensors.index.json").write_text('{"weight_map": {"a": "absent.safetensors"}}')
    torch.save({}, wan / "text_encoder" / "pytorch_model.bin")
    for path in wan.rglob("*"):
        os.utime(path, (1, 1))
    assert digest(wan) == before


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_change_in_any_part_changes_the_digest_also_behind_a_link(wan: Path, tmp_path: Path, part: str) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for folder in wan.iterdir():
        (linked / folder.name).symlink_to(folder)
    before = digest(linked)
    assert before == digest(wan)
    for config in (wan / part).glob("*.json"):
        config.write_text(config.read_text() + "\n")
    assert digest(linked) == digest(wan) != before


def test_a_snapshot_of_the_hubs_cache_is_the_copied_folder(wan: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    blobs.mkdir()
    for number, file in enumerate(path for path in wan.rglob("*") if path.is_file()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.relative_to(wan)).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file.relative_to(wan)).symlink_to(blobs / str(number))
    assert digest(snapshot) == digest(wan)


def shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(tensors)
    places = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(keys)}
    for file in set(places.values()):
        save_file({key: tensors[key] for key in keys if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_shards_and_their_index_are_hashed_and_read(weights: Path, wan: Path) -> None:
    shards(wan / "transformer")
    with opened_below(wan) as opened:
        load("wan", wan.parent).encode_prompts([request_of("wan")])
    assert opened == named(wan, "wan")
    assert {path.name for path in weight_files(wan / "transformer")} == {"model-0.safetensors", "model-1.safetensors"}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")


@pytest.mark.parametrize(
    ("spoil", "file", "told"),
    [
        (Path.unlink, "vae/model.safetensors", r"vae holds no weights"),
        (Path.unlink, "vae/config.json", r"vae/config\.json does not exist.*download it"),
        (Path.unlink, "scheduler/scheduler_config.json", r"scheduler_config\.json does not exist"),
        (lambda file: file.write_bytes(b""), "transformer/model.safetensors", r"model\.safetensors is empty; download"),
        (cut, "transformer/model.safetensors", r"bytes, its header says .*cut short, repeat it"),
        (pointer, "text_encoder/model.safetensors", r"pointer of git-lfs.*run `git lfs pull`"),
        (pointer, "tokenizer/spiece.model", r"spiece\.model is a pointer of git-lfs"),
        (lambda file: shutil.rmtree(file.parent), "vae/config.json", r"has no vae/; the folder needs"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_file(
    wan: Path, spoil: Callable[[Path], object], file: str, told: str
) -> None:
    spoil(wan / file)
    with pytest.raises(CheckpointError, match=told):
        digest(wan)


def test_an_empty_folder_a_missing_shard_and_a_folder_without_tokenizer_are_refused(wan: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has no transformer/, vae/, "):
        digest(tmp_path / "empty")
    shards(wan / "transformer")
    (wan / "transformer/model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-1\.safetensors, which are not there; download them"):
        digest(wan)
    for path in (wan / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="tokenizer holds no tokenizer"):
        loaded_files(wan, ["tokenizer"])


def test_a_folder_without_what_is_needed_is_told_by_what_lies_there(tmp_path: Path) -> None:
    for name in ("transformer", "tokenizer", "vae"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"holds no weights; .*; vae/ is empty"):
        weight_files(tmp_path / "vae")
    (tmp_path / "transformer/model.fp16.safetensors").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"holds the fp16 variant alone \(model.fp16.safetensors\), which is not read"
    ):
        weight_files(tmp_path / "transformer")
    (tmp_path / "tokenizer/README.md").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer; .* in tokenizer/ lie README.md"):
        loaded_files(tmp_path, ["tokenizer"])
    with pytest.raises(CheckpointError, match=r"config.json does not exist; .*; vae/ is empty"):
        loaded_files(tmp_path, ["vae"])
