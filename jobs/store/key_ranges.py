"""Lists a sorted space of keys by several requests at once, without knowing beforehand where the keys lie.

An object store gives keys in order, a page after another: a thousand pages of a tenth of a second are minutes. But a
listing can start after any string. So whoever lists a range gives its upper half away whenever somebody is free; an upper
half that turns out empty costs one request, and shows that the range ends lower.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable

ListPage = Callable[[str], Awaitable[tuple[list[str], bool]]]
"""Returns the next keys after a string, ascending by code points, and whether more follow."""

_FIRST, _LAST = 0x20, 0x7F  # keys between these are split when a range is halved; others sort at its ends
_BASE = _LAST - _FIRST + 2  # one digit per character, 0 for "the key has ended"


async def list_keys(page: ListPage, *, at_once: int) -> list[str]:
    """Returns all keys, each once, in no order, by at most `at_once` requests at a time. Raises the first error of `page`."""
    found: list[str] = []
    free = at_once - 1

    async def read(after: str, last: str | None) -> None:
        # Reads the keys that are greater than `after` and not greater than `last`.
        nonlocal free
        more = True
        while more:
            keys, more = await page(after)
            inside = len(keys) if last is None else bisect_right(keys, last)
            found.extend(keys[:inside])
            if inside < len(keys) or not keys:
                break
            after = keys[-1]
            middle = between(after, last)
            if more and free and middle is not None:
                free -= 1
                tasks.create_task(read(middle, last))
                last = middle
        free += 1

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read("", None))
    except ExceptionGroup as failed:  # whoever retries looks at the error itself, and at its cause
        first = failed.exceptions[0]
        raise first from first.__cause__
    return found


def between(low: str, high: str | None) -> str | None:
    """Returns a short string between two others, about half-way; None stands for no upper end, or for no such string."""
    top = chr(_LAST) if high is None else high
    length = max(len(low), len(top)) + 1
    value = (_number(low, length) + _number(top, length)) // 2
    digits = []
    for _ in range(length):
        value, digit = divmod(value, _BASE)
        digits.append(max(digit, 1))
    middle = "".join(chr(_FIRST - 1 + digit) for digit in reversed(digits))
    for end in range(1, length + 1):
        if low < middle[:end] < top:
            return middle[:end]
    return None


def _number(text: str, length: int) -> int:
    value = 0
    for character in text.ljust(length, chr(_FIRST - 1)):
        value = value * _BASE + min(max(ord(character), _FIRST - 1), _LAST) - _FIRST + 1
    return value
