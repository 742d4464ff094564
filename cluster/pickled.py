"""The pickles that go into a job and back: the caller's value as bytes, and a format number.

Outside of these bytes a pickle has only plain values and `cluster.rank.RankCall`. So every later version can load what an
earlier one queued, and can refuse with a message what it cannot run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

FORMAT = 9
"""Raise this number when a pickled class changes its name, its module or its fields.

Otherwise an old pickle of a dataclass could load with a wrong meaning. Pickles of format 1 have no number.
"""


class FormatError(Exception):
    """A pickle is from another version of the program; the message says how it differs."""


def seal(value: object) -> dict[str, object]:
    """Returns the pickled value with the format. Raises the error of `pickle` for a value that cannot be pickled."""
    return {"format": FORMAT, "value": pickle.dumps(value)}


def unseal(sealed: Mapping[str, object]) -> object:
    """Returns the sealed value. Raises FormatError if another version sealed it, or if its classes do not exist here."""
    found, data = sealed.get("format"), sealed.get("value")
    if found != FORMAT or not isinstance(data, bytes):
        raise FormatError(f"pickled in format {found}, this version reads {FORMAT}")
    try:
        return pickle.loads(data)
    except (ImportError, AttributeError, ValueError) as error:
        # The class does not exist here, or it reports that its fields have changed.
        raise FormatError(f"it does not load here: {error}") from error


class _Unknown:
    """Replaces any class in an outcome, since format 1 pickled its own classes. `state`: the pickled state of the class."""

    state: object = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.state = state


class _OutcomeReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> type[_Unknown]:
        """Imports nothing, so an outcome can be read even if its classes have moved since."""
        return _Unknown


def read_outcome(data: bytes) -> tuple[str, object]:
    """Reads the file that submitit writes for a rank: "success" and the result of `RankCall`, or "error" and a traceback.

    The result of a job of format 1 is also returned as a mapping, with its `attempt` but without its value. Raises
    pickle.UnpicklingError for anything else.
    """
    try:
        outcome, value = _OutcomeReader(io.BytesIO(data)).load()
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        # Broken bytes can also raise these errors, not only UnpicklingError.
        raise pickle.UnpicklingError(repr(error)) from error
    if isinstance(value, _Unknown) and isinstance(value.state, list) and value.state:
        value = {"format": 1, "attempt": value.state[0]}
    return str(outcome), value
