"""The keys of a run's clips, read from its manifest in the bucket: what else lies there is none of the run's."""

from __future__ import annotations

import io

from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from manifests.errors import ManifestError
from manifests.read import read_keys


def run_keys(bucket: Bucket) -> frozenset[str] | None:
    """Returns `<clip_id>.<digest>` of every row; None if a submit was cut off before it wrote the manifest.

    Raises DamagedError for a manifest that cannot be read, else BucketError.
    """
    try:
        data = bucket.read(layout.MANIFEST)
    except FileNotFoundError:
        return None
    try:
        return frozenset(read_keys(io.BytesIO(data)))
    except ManifestError as error:
        action = "submit the same manifest again, which writes it anew"
        raise DamagedError(f"{bucket.url}/{layout.MANIFEST}", f"it is damaged ({error})", action) from error
