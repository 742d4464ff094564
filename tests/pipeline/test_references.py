"""References from the manifest to the video, through the real command line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from jobs.media.encode import encode
from jobs.media.picture import png
from jobs.media.reference_access import ReferenceAccess
from jobs.rendering.references import take_references
from jobs.store.bucket import Bucket
from jobs.store.retry import RetryPolicy
from manifests.clip import Clip
from manifests.references import SeenReference
from pab.families.open_sora.family import OPEN_SORA
from pab.families.tiny_weights import write_tiny_weights
from pab.family import LoadRequest
from pab.parallel.mesh import NodeGroup
from pab.tiny_weights.__main__ import main as write_tiny
from pipeline.run.references import MOST_TIMES_AWAY, ReferenceReader, keep_references, known_references
from tests.jobs.test_reference_access import sends, web_server
from tests.jobs.videos import read_video
from tests.pab.open_sora_ranks import CLIP
from tests.pipeline.command import Command, records
from tests.pipeline.conftest import write_manifest

Manifest = Callable[..., Path]
SIZE = {"num_frames": [34, 34], "height": [112, 112], "width": [128, 128], "num_steps": [2, 2]}


def write_waves(path: Path, phase: float = 0.0) -> None:
    t, y, x = np.meshgrid(np.arange(20) / 6 + phase, np.linspace(0, 6, 120), np.linspace(0, 6, 160), indexing="ij")
    waves = np.stack([np.sin(x + t), np.sin(y - t), np.sin(x + y)], axis=-1)
    encode((waves * 100 + 128).astype(np.uint8), path, fps=24, crf=10, tags={})


def first_chunk(weights: Path, values: dict) -> np.ndarray:
    """The first 17 frames that the VAE makes of a recorded clip's reference, with noise from the clip's seed."""
    lists = {name: tuple(values[name]) for name in ("references", "reference_digests")}
    clip = Clip(**(values | lists))
    model = OPEN_SORA.load(LoadRequest(weights=str(weights), precision="float32", device="cpu"))
    access = ReferenceAccess(roots=("/",))
    taken = take_references(clip, OPEN_SORA.references, RetryPolicy(), access=access)
    request = replace(CLIP, seed=clip.seed)
    given = model.given_frames(request, model.encode_references(request, taken.pixels), taken.masks[0])
    return model.decode(given.latents_BCTHW, request, NodeGroup()).frames[0, :17].numpy()


def coarse(frames: np.ndarray) -> np.ndarray:
    """Means over 8 x 8 pixels: random weights make fine colour patterns, of which H.264 keeps a quarter."""
    return frames.reshape(len(frames), 14, 8, 16, 8, 3).mean(axis=(2, 4))


@torch.inference_mode()
def test_a_clip_begins_with_its_reference_and_a_changed_reference_is_told(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    assert write_tiny(["open_sora", str(tmp_path / "weights")]) == 0
    sora = replace(command, weights=tmp_path / "weights")
    write_waves(tmp_path / "waves.mp4")
    columns = {"references": [["waves.mp4"], None], "mask_strategy": ["0,0,0,0,5", None], "seed": [4, 4]}
    url = manifest(2, **SIZE, **columns)
    output = tmp_path / "out"
    code, document = sora.submit(url, output, "--model", "open_sora")
    assert (code, document["rendered"]) == (0, 2), document
    given, free = (records(output)[name] for name in ("c0", "c1"))
    sha256 = hashlib.sha256((tmp_path / "waves.mp4").read_bytes()).hexdigest()
    assert given["references"] == [{"url": str(tmp_path / "waves.mp4"), "sha256": sha256}]
    assert (free["references"], free["clip"]["mask_strategy"]) == ([], None)
    expected = first_chunk(sora.weights, given["clip"]).astype(float)
    frames, others = (read_video(output / f"videos/{name}.mp4", 128, 112).astype(float) for name in ("c0", "c1"))
    error = np.abs(coarse(frames[:17]) - coarse(expected)).mean()
    assert error < 3
    assert np.abs(coarse(others[:17]) - coarse(expected)).mean() > 4 * error

    code, document = sora.submit(url, output, "--model", "open_sora")
    assert (code, document["rendered_now"]) == (0, 0)
    write_waves(tmp_path / "waves.mp4", phase=1.0)
    ran = sora.run(*sora.submit_words(url, output, "--model", "open_sora", "--dry-run"))
    assert "0 new clips, 1 clip (c0) changed, 1 as before" in ran.stderr
    assert "1 clip of 2 to render" in ran.stdout


def test_rows_whose_references_cannot_be_rendered_are_refused_with_all_other_bad_rows(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    (tmp_path / "text.png").write_text("no picture")
    columns = {
        "num_frames": [8, 8, 8, 9, 8],
        "references": ["a.png", "gone.png", "text.png", None, "a.png"],
        "mask_strategy": [None, None, None, None, "0,0,0,4"],
    }
    code, document = command.submit(manifest(5, **columns), tmp_path / "out")
    assert code == 4
    told = document["error"]["message"]
    assert "4 problems" in told
    assert f"row 1: references={tmp_path}/gone.png, it cannot be read (the file does not exist)" in told
    assert f"row 2: references={tmp_path}/text.png, it is neither an image" in told
    assert "row 3: num_frames=9" in told
    assert "row 4: mask_strategy='0,0,0,4', it starts at latent frame 4 of the clip, which has 4" in told
    assert not (tmp_path / "out").exists()


def test_files_outside_of_the_manifests_folder_are_read_only_if_the_user_names_their_folder(
    command: Command, tmp_path: Path
) -> None:
    for name in ("media", "manifests"):
        (tmp_path / name).mkdir()
    picture, url = (
        tmp_path / "media" / "a.png",
        write_manifest(tmp_path / "manifests", 1, references=["../media/a.png"]),
    )
    picture.write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    code, document = command.submit(url, tmp_path / "out", "--dry-run")
    told = document["error"]["message"]
    assert code == 4
    assert "row 0: references=" in told
    assert "it is (or leads to) a file outside of the folders that references may be read from" in told
    assert f"({tmp_path}/manifests); move it there, or name its folder: --reference-root DIR" in told
    named = ("--reference-root", str(tmp_path / "media"))
    assert command.json("manifest", "validate", url, *named)[0] == 0
    assert command.submit(url, tmp_path / "out", *named)[0] == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["render"]
    assert settings["reference_roots"] == [str(tmp_path / "manifests"), str(tmp_path / "media")]
    assert settings["allow_private_references"] is False
    code, document = command.json("manifest", "validate", url, "--reference-root", str(picture))
    assert (code, "is no folder here" in document["error"]["message"]) == (2, True)


def test_private_addresses_are_asked_only_if_the_user_says_so(command: Command, manifest: Manifest) -> None:
    image = png(np.zeros((8, 8, 3), np.uint8))
    with web_server(sends(image)) as server:
        url = manifest(1, references=[f"{server}/a.png"])
        code, document = command.json("manifest", "validate", url)
        assert code == 4
        assert "it leads to 127.0.0.1, which is no public address" in document["error"]["message"]
        assert "--allow-private-references" in document["error"]["message"]
        assert command.json("manifest", "validate", url, "--allow-private-references")[0] == 0


def test_a_clip_begins_with_its_image_and_rows_whose_image_does_not_fit_are_refused(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    write_tiny_weights("wan_14b_i2v_480p", tmp_path / "weights")
    wan = replace(command, weights=tmp_path / "weights")
    ramp = np.linspace(0, 255, 37 * 53 * 3).reshape(37, 53, 3).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(png(ramp))
    broken = bytearray(png(ramp))
    broken[60:-20] = bytes(len(broken) - 80)
    (tmp_path / "broken.png").write_bytes(broken)
    write_waves(tmp_path / "waves.mp4")
    size = {"height": 32, "width": 32, "num_steps": 1, "num_frames": 5, "guidance_scale": 1.0}
    columns = {name: [value] * 5 for name, value in size.items()}
    model = ("--model", "wan_14b_i2v_480p")
    url = manifest(5, **columns, image=["a.png", None, "waves.mp4", "gone.png", "a.png"])
    code, document = wan.submit(url, tmp_path / "out", *model, "--dry-run")
    assert code == 4
    told = document["error"]["message"]
    assert "row 1: image, wan_14b_i2v_480p needs an image, the first frame of the clip; name its path or URL" in told
    assert (
        f"row 2: image={tmp_path}/waves.mp4, it is a video of 20 frames, and the column image names a picture" in told
    )
    assert f"row 3: image={tmp_path}/gone.png, it cannot be read (the file does not exist)" in told
    assert "3 problems" in told

    columns = {name: [value] * 2 for name, value in size.items()}
    url = manifest(2, **columns, image=["broken.png", "a.png"])
    output = tmp_path / "out"
    code, document = wan.submit(url, output, *model, "--max-attempts", "1")
    assert (code, document["rendered"], document["failed"]) == (3, 1, 1), document
    (record,) = records(output).values()
    sha256 = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert record["references"] == [{"url": str(tmp_path / "a.png"), "sha256": sha256}]
    assert record["seconds"]["encode_references"] > 0
    assert [loop["given_latent_frames"] for loop in record["loops"]] == [1]
    (failure,) = (json.loads(path.read_text()) for path in (output / "failures").iterdir())
    assert (failure["stage"], failure["error"]) == ("read_references", "UnusableReferenceError")


def test_a_family_that_takes_no_references_says_so(command: Command, manifest: Manifest, tmp_path: Path) -> None:
    write_tiny_weights("wan", tmp_path / "wan")
    wan = replace(command, weights=tmp_path / "wan")
    url = manifest(1, num_frames=[5], references=["a.png"])
    code, document = wan.submit(url, tmp_path / "out", "--model", "wan", "--dry-run")
    assert code == 4
    assert "row 0: references='a.png', wan takes no references; leave the column empty" in document["error"]["message"]


def test_a_reference_that_an_earlier_submit_has_read_is_read_again_only_if_its_file_has_changed(tmp_path: Path) -> None:
    bucket, here = Bucket(str(tmp_path / "out")), str(tmp_path / "a.png")
    access = ReferenceAccess(roots=(str(tmp_path),))
    assert known_references(bucket) == {}
    first, second = (png(np.zeros((8, 8, 3), np.uint8)) + end for end in (b"a", b"b"))
    Path(here).write_bytes(first)
    reader = ReferenceReader(access)
    assert reader([here])[here] == SeenReference(sha256=hashlib.sha256(first).hexdigest(), num_frames=1)
    # Another SHA-256 in what is kept shows whether the file was read.
    keep_references(bucket, {here: replace(reader.known[here], sha256="as kept")})
    reader = ReferenceReader(access, known=known_references(bucket))
    assert reader([here])[here] == SeenReference(sha256="as kept", num_frames=1)
    times = Path(here).stat()
    Path(here).write_bytes(second)
    os.utime(here, ns=(times.st_atime_ns, times.st_mtime_ns))
    reader = ReferenceReader(access, known=known_references(bucket))
    assert reader([here])[here] == SeenReference(sha256=hashlib.sha256(second).hexdigest(), num_frames=1)
    Path(here).unlink()
    reader = ReferenceReader(access, known=known_references(bucket))
    assert "the file does not exist" in str(reader([here])[here])


def test_a_reference_is_read_once_and_a_store_that_is_away_is_not_asked_for_ever(tmp_path: Path) -> None:
    image = png(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(image)
    access = ReferenceAccess(roots=(str(tmp_path),), private=True)
    reader = ReferenceReader(access, RetryPolicy(total_s=0.05, operation_s=2, first_wait_s=0.02))
    here = str(tmp_path / "a.png")
    seen = SeenReference(sha256=hashlib.sha256(image).hexdigest(), num_frames=1)
    assert reader([here]) == {here: seen}
    (tmp_path / "a.png").unlink()
    assert reader([here]) == {here: seen}
    for number in range(MOST_TIMES_AWAY):
        url = f"http://127.0.0.1:9/{number}.png"
        assert "cannot be read" in str(reader([url])[url])
    url = "http://127.0.0.1:9/last.png"
    assert "http://127.0.0.1:9 gave no answer 3 times, so this one was not tried" in str(reader([url])[url])
