"""The only file of this package that reads environment variables: PAB_PIPELINE_MESH=sp=2 means --mesh sp=2."""

from __future__ import annotations

import os
from collections.abc import Mapping

from pipeline.exits import check_names

PREFIX = "PAB_PIPELINE_"


def environment_settings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the settings in the environment: `PAB_PIPELINE_MESH=sp=2` gives `{"mesh": "sp=2"}`.

    Raises UsageError for a value that no name can be.
    """
    variables = os.environ if environment is None else environment
    found = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in variables.items()
        if name.startswith(PREFIX) and value != ""
    }
    check_names(found.values())
    return found


def variables() -> Mapping[str, str]:
    """Returns the whole environment, for variables of other programs (`CUDA_VISIBLE_DEVICES`)."""
    return os.environ
