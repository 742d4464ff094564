"""What travels as a pickle into a job and back: the caller's value as bytes, beside a format number.

Around those bytes stand only plain values and `cluster.rank.RankCall`, so code of every later version can load what an
earlier one has queued, and refuses in words what it cannot run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping

FORMAT = 2
"""To be raised when a class that is pickled changes its name, its place or its fields.

Without that a dataclass of other fields would load and mean something else. Format 1 did not say its number.
"""


class FormatError(Exception):
    """A pickle is not of this version of the program; the message says in which way."""


def seal(value: object) -> dict[str, object]:
    """Returns the value pickled, with the format. Raises what `pickle` raises for a value that is not importable."""
    return {"format": FORMAT, "value": pickle.dumps(value)}


def unseal(sealed: Mapping[str, object]) -> object:
    """Returns what was sealed. Raises FormatError where another version sealed it, or where its classes are not here."""
    found, data = sealed.get("format"), sealed.get("value")
    if found != FORMAT or not isinstance(data, bytes):
        raise FormatError(f"pickled in format {found}, this version reads {FORMAT}")
    try:
        return pickle.loads(data)
    except (ImportError, AttributeError, ValueError) as error:
        # A class that is not here, or one that says that it has other fields by now.
        raise FormatError(f"it does not load here: {error}") from error


class _Unknown:
    """Stands for any class in an outcome: code of format 1 pickled its own. `state`: what the class was pickled with."""

    state: object = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        self.state = state


class _OutcomeReader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> type[_Unknown]:
        """Imports nothing: an outcome can be read whatever has moved since."""
        return _Unknown


def read_outcome(data: bytes) -> tuple[str, object]:
    """Reads what submitit writes for a rank: "success" and what `RankCall` returned, or "error" and a traceback.

    The result of a job of format 1 becomes a mapping too, with its `attempt` and without its value. Raises
    pickle.UnpicklingError for what is not such a pickle.
    """
    try:
        outcome, value = _OutcomeReader(io.BytesIO(data)).load()
    except (EOFError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        # What reading broken bytes raises beside UnpicklingError.
        raise pickle.UnpicklingError(repr(error)) from error
    if isinstance(value, _Unknown) and isinstance(value.state, list) and value.state:
        value = {"format": 1, "attempt": value.state[0]}
    return str(outcome), value
