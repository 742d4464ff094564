"""The C2PA library, which is an extra: loaded where a video is signed or read, and nowhere else."""

from __future__ import annotations

from types import ModuleType

from jobs.provenance.errors import ProvenanceError


def load_library() -> ModuleType:
    """Returns the module `c2pa`. Raises ProvenanceError naming the extra if it is not installed or does not load here."""
    try:
        import c2pa
    except (ImportError, OSError) as error:
        raise ProvenanceError(
            f"C2PA manifests need the package c2pa-python ({error}); install it: pip install 'pab-pipeline[c2pa]', or from "
            "a checkout pip install -e '.[c2pa]'"
        ) from error
    return c2pa
