"""A run of signed videos on a real SLURM into a real S3 bucket: jobs read the key from its file, and nothing else has it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from tests.cluster.daemons.slurm import Slurm
from tests.cluster.test_whole_runs import SLURM, bucket  # noqa: F401  (a fixture)
from tests.jobs.certificates import make_pair
from tests.pipeline.command import Command
from tests.pipeline.conftest import cold_command as command  # noqa: F401  (fixtures)
from tests.pipeline.conftest import manifest, weights  # noqa: F401

pytestmark = pytest.mark.cluster


def test_jobs_of_two_ranks_sign_with_the_users_certificate_and_the_bucket_has_no_key(
    command: Command,  # noqa: F811
    manifest: Callable[..., Path],  # noqa: F811
    slurm: Slurm,
    bucket: tuple[str, s3fs.S3FileSystem],  # noqa: F811
    tmp_path: Path,
) -> None:
    url, fs = bucket
    certificate, key = make_pair(tmp_path)
    words = ["submit", manifest(2), "--output", url, "--weights", command.weights, *SLURM, "--gpus-per-node", "2"]
    code, document = command.json(*words, "--c2pa", "--c2pa-cert", certificate, "--c2pa-key", key)
    assert (code, document["rendered_now"]) == (0, 2)
    authority = tmp_path / "mine-authority.pem"
    for clip in ("c0", "c1"):
        code, told = command.json("verify", url, "--clip", clip, "--trust", authority)
        assert (code, told["manifest"]["verdict"], told["record"]["differences"]) == (0, "trusted", [])
    assert command.json("verify", f"{url}/videos/c0.mp4")[0] == 0
    secret = key.read_bytes().splitlines()[1]
    forms = (secret, base64.b64decode(secret)[5:35])
    kept = [fs.cat_file(path) for path in fs.find(url)]
    kept += [path.read_bytes() for path in command.folder.rglob("*") if path.is_file()]
    assert len(kept) > 20
    assert not [data for data in kept if any(form in data for form in forms)]
