"""Weights of families in small, written once for all tests of a run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.pab.every_family import write_at
from tests.shared import made_once

TinyWeights = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> TinyWeights:
    """Returns, given names, a folder in which each of these families lies under its name. To be read only."""

    def folder_of(*names: str) -> Path:
        folders = [made_once(tmp_path_factory, f"tiny/{name}", partial(write_at, name)) for name in names]
        return folders[0].parent

    return folder_of
