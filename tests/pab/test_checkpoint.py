"""Published checkpoints: found locally or in the hub's cache, read from shards, loaded whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pab.weights.checkpoint import (
    CheckpointError,
    Published,
    checkpoint_digest,
    find_checkpoint,
    hub_name,
    load_module,
    pin,
    read_config,
    read_tensors,
)
from pab.weights.digest import weights_digest
from pab.weights.folders import HubPart, PublishedParts

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PUBLISHED = Published(
    hub_id="nobody/nothing",
    revision="main",
    components={"transformer": "config.json and weights", "vae": "config.json and weights"},
)


def lay_out(folder: Path) -> Path:
    for component in PUBLISHED.components:
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text('{"width": 3}')
        save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, folder / component / "model.safetensors")
    return folder


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache on this machine that holds the published weights, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_local_folder_is_used_as_it_is(tmp_path):
    folder = lay_out(tmp_path / "latte")
    assert find_checkpoint(str(folder), PUBLISHED) == folder
    assert pin(str(folder), PUBLISHED) == str(folder)


def test_local_folder_without_a_component_names_it(tmp_path):
    (tmp_path / "transformer").mkdir()
    with pytest.raises(CheckpointError, match=r"has no vae/; the folder needs\n  transformer/ +config.json"):
        find_checkpoint(str(tmp_path), PUBLISHED)


def test_weights_that_are_neither_folder_nor_hub_id_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="neither a folder on this machine nor a hub id"):
        find_checkpoint(str(tmp_path / "absent" / "place"), PUBLISHED)


def test_hub_names_carry_their_revision():
    assert hub_name(None, PUBLISHED) == ("nobody/nothing", "main")
    assert hub_name("some/model@v2", PUBLISHED) == ("some/model", "v2")
    assert hub_name("some/model", PUBLISHED) == ("some/model", "main")


def test_offline_without_cache_says_which_files_to_put_where(hub_cache):
    with pytest.raises(CheckpointError, match=r"download nobody/nothing at revision main.*\n  transformer/"):
        find_checkpoint(None, PUBLISHED)


def test_offline_cache_answers_and_pins_the_commit(hub_cache):
    repository = hub_cache / "models--nobody--nothing"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = lay_out(repository / "snapshots" / COMMIT)
    assert find_checkpoint(None, PUBLISHED) == folder
    assert pin(None, PUBLISHED) == f"nobody/nothing@{COMMIT}"
    assert checkpoint_digest(None, PUBLISHED) == checkpoint_digest(f"nobody/nothing@{COMMIT}", PUBLISHED)


def publish(hub_cache: Path, hub_id: str, commit: str) -> Path:
    """Lays a commit into the hub's cache and has the branch stand at it."""
    repository = hub_cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return lay_out(repository / "snapshots" / commit)


def test_pinned_weights_stay_what_they_were_when_the_branch_moves(hub_cache):
    first = publish(hub_cache, "nobody/nothing", COMMIT)
    pinned = pin(None, PUBLISHED)
    second = publish(hub_cache, "nobody/nothing", "f" * 40)
    assert find_checkpoint(None, PUBLISHED) == second
    assert find_checkpoint(pinned, PUBLISHED) == first
    assert checkpoint_digest(pinned, PUBLISHED) != checkpoint_digest(None, PUBLISHED)


def test_every_repository_of_a_model_is_pinned(hub_cache):
    other = replace(PUBLISHED, hub_id="nobody/text")
    parts = PublishedParts(
        local=PUBLISHED,
        transformer=HubPart(published=PUBLISHED, folder="transformer"),
        vae=HubPart(published=PUBLISHED, folder="vae"),
        text_encoder=HubPart(published=other, folder="transformer"),
        tokenizer=HubPart(published=other, folder="vae"),
    )
    first = publish(hub_cache, "nobody/nothing", COMMIT)
    text = publish(hub_cache, "nobody/text", "a" * 40)
    pinned, digest = parts.pin(None), parts.digest(None)
    assert pinned == f"nobody/nothing@{COMMIT},nobody/text@{'a' * 40}"
    assert parts.pin(f"my/tuned@{'c' * 40}") == f"my/tuned@{'c' * 40},nobody/text@{'a' * 40}"
    for hub_id in ("nobody/nothing", "nobody/text"):
        publish(hub_cache, hub_id, "f" * 40)
    folders = parts.find(pinned)
    assert (folders.transformer, folders.vae) == (first / "transformer", first / "vae")
    assert (folders.text_encoder, folders.tokenizer) == (text / "transformer", text / "vae")
    assert parts.digest(pinned) == digest != parts.digest(None)
    with pytest.raises(
        CheckpointError, match="nobody/else holds no part of this model, allowed after the first: nobody"
    ):
        parts.pin("nobody/nothing,nobody/else@v1")


def test_digest_of_a_folder_changes_with_its_weights(tmp_path):
    folder = lay_out(tmp_path / "a")
    before = checkpoint_digest(str(folder), PUBLISHED)
    save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, folder / "vae" / "model.safetensors")
    assert checkpoint_digest(str(folder), PUBLISHED) != before


def shard(folder: Path, suffix: str) -> None:
    save = save_file if suffix == "safetensors" else torch.save
    save({"weight": torch.full((2, 3), 5.0)}, folder / f"model-1.{suffix}")
    save({"bias": torch.full((2,), 7.0)}, folder / f"model-2.{suffix}")
    places = {"weight": f"model-1.{suffix}", "bias": f"model-2.{suffix}"}
    (folder / f"model.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_joined(tmp_path, suffix):
    shard(tmp_path, suffix)
    tensors = read_tensors(tmp_path)
    assert sorted(tensors) == ["bias", "weight"]
    assert tensors["weight"].eq(5).all()
    assert tensors["bias"].eq(7).all()


def test_missing_shard_is_named(tmp_path):
    shard(tmp_path, "safetensors")
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-2\.safetensors, which are not there"):
        read_tensors(tmp_path)


def test_two_candidates_without_index_are_not_guessed_between(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"weight": torch.ones(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors and no index"):
        read_tensors(tmp_path)


def test_pickled_code_is_not_run(tmp_path):
    torch.save({"weight": Path("/")}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"model\.bin holds Python objects besides tensors"):
        read_tensors(tmp_path)


def test_empty_folder_and_unreadable_config_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_tensors(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(tmp_path)


def test_all_wrong_keys_come_in_one_error():
    wrong = {"weight": torch.ones(3, 3), "extra": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_module(lambda: nn.Linear(3, 2), wrong, what="layer", dtype=torch.float32, device="cpu")
    message = str(caught.value)
    assert "missing (1): bias" in message
    assert "surplus (1): extra" in message
    assert "misshaped (1): weight has [3, 3], needs [2, 3]" in message


def test_module_is_loaded_cast_and_frozen():
    tensors = {
        "weight": torch.full((2, 3), 0.5, dtype=torch.float16),
        "bias": torch.ones(2),
        "pos.table": torch.ones(9),
    }
    layer = load_module(
        lambda: nn.Linear(3, 2), tensors, what="layer", dtype=torch.bfloat16, device="cpu", surplus_ok=("pos.*",)
    )
    assert layer.weight.dtype == torch.bfloat16
    assert not layer.weight.requires_grad
    assert layer(torch.ones(1, 3, dtype=torch.bfloat16)).tolist() == [[2.5, 2.5]]


def test_a_transport_error_of_the_hubs_client_is_told_as_a_hub_that_cannot_be_reached(monkeypatch):
    """The client's transport raises errors that are no OSError; a submit of other families must live with them."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    class TransportError(HTTPError):
        pass

    def fail(*_, **__):
        raise TransportError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"cannot be fetched [(]name or service not known"):
        pin(None, PUBLISHED)


def test_weights_behind_links_to_folders_are_part_of_the_digest(tmp_path: Path) -> None:
    parts, linked, plain = tmp_path / "parts", tmp_path / "linked", tmp_path / "plain"
    for root in (parts, plain):
        (root / "transformer").mkdir(parents=True)
        (root / "transformer" / "model.safetensors").write_bytes(b"first")
    linked.mkdir()
    (linked / "transformer").symlink_to(parts / "transformer")
    (parts / "transformer" / "back").symlink_to(parts)  # a link to a folder above ends nothing
    before = weights_digest(linked)
    assert before == weights_digest(plain), "a linked part is the part"
    (parts / "transformer" / "model.safetensors").write_bytes(b"other")
    assert weights_digest(linked) != before


@pytest.mark.parametrize("inside", [(), ("transformer",)])
def test_a_folder_without_a_file_names_no_weights(tmp_path: Path, inside: tuple[str, ...]) -> None:
    for name in inside:
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file; give the folder"):
        weights_digest(tmp_path)
