"""Weights whose decoder gives NaN, through the whole command line."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from tests.pab.poisoned import poison_file
from tests.pipeline.command import Command
from tests.pipeline.conftest import Manifest


def test_one_nan_in_the_decoders_weights_is_a_failure_at_decode_and_no_record(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    weights, output = tmp_path / "weights", tmp_path / "out"
    shutil.copytree(command.weights, weights)
    poison_file(weights / "demo.safetensors")
    spoilt = replace(command, weights=weights)
    code, document = spoilt.submit(manifest(1), output, "--max-attempts", "1")
    assert (code, document["rendered"]) == (3, 0)
    (failure,) = document["failures"]
    assert (failure["stage"], failure["error"]) == ("decode", "NotFiniteError")
    assert "decoded values are NaN or infinite" in failure["message"]
    assert not [path for name in ("records", "videos") for path in (output / name).glob("*")]
