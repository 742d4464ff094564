"""The demo manifest: eight clips for the family `demo`. `python -m manifests.demo` builds it anew from its CSV."""

from __future__ import annotations

from pathlib import Path

from manifests.build import BuiltManifest, build

DEMO_CSV = Path(__file__).with_name("demo.csv")
DEMO_PARQUET = Path(__file__).with_name("demo.parquet")


def build_demo(destination: Path = DEMO_PARQUET) -> BuiltManifest:
    """Builds the demo manifest from its CSV."""
    return build(str(DEMO_CSV), destination, overwrite=True)


if __name__ == "__main__":
    build_demo()
