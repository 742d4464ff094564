"""Faults of a store, of the way to it, and of what lies in it, each a function that makes one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp
from botocore.exceptions import BotoCoreError

from tests.faults.old_listing import OldListing
from tests.faults.one_run import Run
from tests.faults.world import BUCKET

_AWAY_S = (0.3, 4.0)
_LATE_S = (5.0, 45.0)
_STALE_S = (10.0, 60.0)
_MEETS_S = 60.0
"""How long the next upload or listing may take: a job that starts on a busy machine makes none for half a minute."""
_SERVER = (OSError, BotoCoreError, aiohttp.ClientError)


def kill_s3(run: Run) -> bool:
    run.world.ceph.kill_gateway()
    run.wait(run.rng.uniform(*_AWAY_S))
    run.world.ceph.serve(run.world.s3_port)
    return True


def trouble(mode: str) -> Callable[[Run], bool]:
    def make(run: Run) -> bool:
        before = run.world.proxy.hits
        run.world.proxy.make_trouble(mode, for_s=run.rng.uniform(*_AWAY_S))
        # Only what met a request was a fault.
        return run.wait_for(lambda: run.world.proxy.hits > before, timeout_s=_AWAY_S[1])

    return make


def late_uploads(run: Run) -> bool:
    """Cuts off the senders of the next few uploads; what they sent arrives when others have done the work again."""
    proxy = run.world.proxy
    # In a store without conditions a late record would stand over the one of another attempt, and nothing could tell.
    kinds = ("renders", "videos") if proxy.drops_conditions else ("",)
    starts = tuple(f"/{run.url.removeprefix('s3://')}/{kind}" for kind in kinds)
    before = len(proxy.late)
    by_s = run.rng.uniform(*_LATE_S)
    count = run.rng.randint(1, 4)
    proxy.make_uploads_late(count, by_s=by_s, wanted=lambda path: path.startswith(starts), for_s=_MEETS_S)
    hit = run.wait_for(lambda: len(proxy.late) > before, timeout_s=_MEETS_S)
    if hit:
        run.wait(1.0)
        run.note(f"late by {by_s:.0f} s: {', '.join(path.split('/', 3)[-1] for path in proxy.late[before:])}")
    return hit


def stale_listings(run: Run) -> bool:
    """Answers all listings, or every other one, as they would have been answered at this moment, for up to a minute."""
    proxy = run.world.proxy
    try:
        listing = OldListing.of(run.world.s3, BUCKET)
    except _SERVER:
        return False
    before, for_s, share = proxy.stale_hits, run.rng.uniform(*_STALE_S), run.rng.choice((0.5, 1.0))
    proxy.make_listings_stale(listing.answer, for_s=for_s, share=share)
    run.note(f"{share:.0%} of listings are stale for {for_s:.0f} s")
    return run.wait_for(lambda: proxy.stale_hits > before, timeout_s=_MEETS_S)


def damage(run: Run) -> bool:
    """Empties or cuts something that is there: an object of the run, or a file that says what its jobs are."""
    kept = run.rng.choice((0.0, 0.0, 0.5, 0.95))
    try:
        places = [*_objects(run), *_job_files(run)]
        if not places:
            return False
        # Every kind of thing as often as any other: there are many videos and one manifest.
        kind = run.rng.choice(sorted({kind for kind, _ in places}))
        place = run.rng.choice([place for found, place in places if found == kind])
        if isinstance(place, Path):
            data = place.read_bytes()
            place.write_bytes(data[: int(len(data) * kept)])
        else:
            run.ledger.damage(place, kept=kept)
    except _SERVER:  # gone, or away
        return False
    run.note(f"damaged: {place}, {kept:.0%} of it is left")
    return True


def _objects(run: Run) -> list[tuple[str, str | Path]]:
    found = [(kind, f"{kind}/{name}") for kind in ("records", "renders", "videos") for name in run.ledger.names(kind)]
    reports = [name for name in run.ledger.names("reports") if name.startswith("job-") and name.endswith(".json")]
    with contextlib.suppress(FileNotFoundError):
        run.ledger.read("manifest.parquet")
        found.append(("manifest", "manifest.parquet"))
    return [*found, *(("reports", f"reports/{name}") for name in reports)]


def _job_files(run: Run) -> list[tuple[str, str | Path]]:
    try:
        run_id = json.loads(run.ledger.read("run.json"))["run_id"]
    except FileNotFoundError:
        return []
    folder = run.world.work / "runs" / ".jobs" / run_id
    return [
        *(("submitted", path) for path in sorted(folder.glob("*/submitted.json"))),
        *(("result", path) for path in sorted(folder.glob("*/*_result.pkl"))),
    ]
