import asyncio
import random
import string
from bisect import bisect_right

import pytest

from jobs.store.key_ranges import between, list_keys

SPREAD = [f"{index * 7919 % 100_003:05d}.{index:016x}" for index in range(3000)]
ALIKE = [f"a-run-of-many-clips-{index:07d}.{index * 7:016x}.json" for index in range(3000)]
ODD = ["", " ", "~", "~~~", "\x7f", "a", "aa", "a\x7f", "a ", "ä", "äö", "日本", "日本.1", "\U0001f600", "z" * 300]


class Store:
    """Lists sorted keys page by page, and counts."""

    def __init__(self, keys: list[str], page_size: int) -> None:
        self.keys, self.page_size = sorted(keys), page_size
        self.requests = self.rounds = self.waiting = self.most_at_once = 0

    async def page(self, after: str) -> tuple[list[str], bool]:
        self.requests += 1
        self.waiting += 1
        self.rounds += self.waiting == 1
        self.most_at_once = max(self.most_at_once, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        begin = bisect_right(self.keys, after) if after else 0
        end = begin + self.page_size
        return self.keys[begin:end], end < len(self.keys)


@pytest.mark.parametrize("keys", [[], ["one"], SPREAD, ALIKE, ODD[1:], ODD[1:] + ALIKE[:50]])
@pytest.mark.parametrize("page_size", [1, 7, 1000])
@pytest.mark.parametrize("at_once", [1, 8])
def test_every_key_is_listed_once(keys, page_size, at_once):
    store = Store(keys, page_size)
    assert sorted(asyncio.run(list_keys(store.page, at_once=at_once))) == sorted(keys)
    assert store.most_at_once <= at_once
    pages = -(-len(keys) // page_size) or 1
    assert store.requests <= 2 * pages + at_once


@pytest.mark.parametrize("keys", [SPREAD, ALIKE])
def test_a_long_listing_waits_for_a_fraction_of_its_pages(keys):
    store = Store(keys, 10)
    asyncio.run(list_keys(store.page, at_once=8))
    assert store.most_at_once == 8
    assert store.rounds < 100  # of 300 pages


def test_one_page_is_one_request():
    store = Store(SPREAD[:900], 1000)
    asyncio.run(list_keys(store.page, at_once=8))
    assert store.requests == 1


def test_what_lies_between_lies_between():
    rng = random.Random(1)
    texts = ["".join(rng.choices(string.printable + "äß日", k=rng.randint(0, 6))) for _ in range(2000)] + ODD
    for low in texts:
        high = rng.choice([None, *texts])
        middle = between(low, high)
        assert middle is None or (low < middle and (high is None or middle < high))
    assert between("clip-0000999", None) is not None
    assert between("clip-0000999", "clip-0005") is not None
    assert between("a", "a ") is None


def test_an_error_ends_the_listing_and_keeps_its_cause():
    async def page(after: str) -> tuple[list[str], bool]:
        raise ConnectionError("away") from ValueError("the store's own word")

    with pytest.raises(ConnectionError) as told:
        asyncio.run(list_keys(page, at_once=8))
    assert isinstance(told.value.__cause__, ValueError)
