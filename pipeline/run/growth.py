"""A run that grows: another manifest for the same output. What is new or changed is rendered, the rest is kept.

What left the manifest stays in the bucket, counts no more, and is removed only if the user says `--prune`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from manifests.errors import ManifestError
from manifests.read import read_keys
from pipeline.exits import UsageError
from pipeline.run.at_work import AtWork
from pipeline.run.damage import look_for_damage, write_plain_names
from pipeline.run.run import Run, changed_pixels, changed_rows, defaults_not_known, rewrite_run, start_run, undo_shards
from pipeline.run.settings import RunSettings
from pipeline.run.state import clip_id
from pipeline.screen import Screen, counted, own_command

SHOWN_CLIPS = 5
FORCE = "--force-new-settings"
_BY_CONTENT = ("renders", "posters", "samples")
"""Folders whose files are named by their clip's key and their own bytes."""
_KEY = re.compile(r"[A-Za-z0-9._-]+\.[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a manifest differs from that of its run, by keys.

    `new`: of clips whose id was not there; `changed`: of clips that were there with another digest, and `replaced` what these
    were called; `left`: of clips that are in the manifest no more. `kept`: how many are as they were. `run`: run.json before,
    and `manifest` the run's manifest, with which a refused submit brings the run back; None where it was never written.
    """

    new: frozenset[str]
    changed: frozenset[str]
    replaced: frozenset[str]
    left: frozenset[str]
    kept: int
    run: Mapping[str, Any]
    manifest: bytes | None

    @property
    def facts(self) -> dict[str, object]:
        """Numbers, and ids of clips that left."""
        return {
            "new": len(self.new),
            "changed": len(self.changed),
            "kept": self.kept,
            "left": len(self.left),
            "left_clips": sorted(map(clip_id, self.left))[:100],
        }

    def told(self, *, prune: bool) -> str:
        """Says it in a line. `prune`: whether this submit removes what left."""
        parts = [f"{counted(len(self.new), 'new clip')}", f"{_named(self.changed)} changed", f"{self.kept:,} as before"]
        told = f"the run's manifest changes: {', '.join(parts)}"
        if self.left:
            stays = "stays and counts no more (--prune removes it)"
            what = "is removed (--prune)" if prune else stays
            told += f"; {_named(self.left)} left it: what is rendered of them {what}"
        return told


def find_growth(bucket: Bucket, found: Run, asked: Run, path: Path, *, forced: bool) -> Growth | None:
    """Returns how the accepted manifest at `path` changes the run that was found; None if the manifest is the run's.

    `forced`: whether settings that change pixels may differ. Raises UsageError naming what differs, BucketError.
    """
    if found.manifest_digest == asked.manifest_digest:
        return None
    if not forced and (changed := changed_pixels(found, asked)):
        raise UsageError(
            f"{bucket.url} holds another run: {'; '.join(changed)}. Give this one another --output, or go on with the "
            f"settings of that run (they are in its run.json); {FORCE} renders the run's clips again with the new ones"
        )
    growth = _compare(bucket, path)
    if not forced and growth.changed and (unknown := defaults_not_known(found, asked)):
        raise UsageError(
            f"{bucket.url} holds another run: {counted(len(growth.changed), 'clip')} of it differ. Either their rows have "
            f"changed, or rows of {', '.join(unknown)} got another broadcast by default when it began: name it, give this "
            f"one another --output, or say {FORCE} to render them again"
        )
    return growth


def _compare(bucket: Bucket, path: Path) -> Growth:
    run, manifest = bucket.read_json(layout.RUN), _manifest(bucket)
    try:
        before = {clip_id(key): key for key in read_keys(io.BytesIO(manifest))} if manifest is not None else {}
    except ManifestError as error:
        action = "submit the manifest that it had, which writes it anew"
        raise DamagedError(f"{bucket.url}/{layout.MANIFEST}", f"it is damaged ({error})", action) from error
    new, changed, replaced, kept = set(), set(), set(), 0
    for key in read_keys(str(path)):
        old = before.pop(clip_id(key), None)
        if old == key:
            kept += 1
        elif old is None:
            new.add(key)
        else:
            changed.add(key)
            replaced.add(old)
    return Growth(
        new=frozenset(new), changed=frozenset(changed), replaced=frozenset(replaced), left=frozenset(before.values()),
        kept=kept, run=run, manifest=manifest,
    )  # fmt: skip


def _manifest(bucket: Bucket) -> bytes | None:
    try:
        return bucket.read(layout.MANIFEST)
    except FileNotFoundError:
        return None


def refuse_while_at_work(bucket: Bucket, found: Run, asked: Run, at_work: AtWork) -> None:
    """Raises UsageError if somebody is at work on the run: its manifest does not change under living jobs."""
    jobs = [*(f"{job.name} ({job.id})" for job, _ in at_work.orphans.values()), *at_work.strangers]
    who = [*at_work.drivers, *jobs[:SHOWN_CLIPS], *(["..."] if len(jobs) > SHOWN_CLIPS else [])]
    if who:
        raise UsageError(
            f"{bucket.url} holds another run: {changed_rows(found, asked)}, and somebody is at work on that run: "
            f"{', '.join(who)}. A run can change when nobody is: wait for them ({own_command('status', bucket.url)}), or "
            f"end them ({own_command('cancel', bucket.url)}), and submit again; or give this one another --output"
        )


def start_or_grow(
    bucket: Bucket, found: Run | None, asked: Run, settings: RunSettings, growth: Growth | None
) -> tuple[Run, bool]:
    """Returns the run that is rendered, and whether this submit begins it. Raises UsageError, BucketError."""
    if found and growth:
        return grow_run(bucket, found, asked, settings, growth), False
    return start_run(bucket, asked, settings)


def grow_run(bucket: Bucket, found: Run, asked: Run, settings: RunSettings, growth: Growth) -> Run:
    """Writes run.json of the changed run and returns it. What its families began with stays known. Raises BucketError."""
    own = {name: said for name, said in found.pixels.items() if _family(name) not in {None, *asked.weights}}
    run = replace(
        found,
        manifest_digest=asked.manifest_digest,
        num_clips=asked.num_clips,
        pixels=own | dict(asked.pixels),
        weights={**found.weights, **asked.weights},
        kept={**found.kept, **asked.kept},
        weighed={**found.weighed, **asked.weighed},
        broadcasts={**found.broadcasts, **asked.broadcasts},
        changes=found.changes + 1,
    )
    facts = {name: said for name, said in growth.facts.items() if name != "left_clips"}
    note = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "before": found.manifest_digest} | facts
    rewrite_run(bucket, growth.run, run, settings, note)
    return run


def _family(name: str) -> str | None:
    # Of a setting in `Run.pixels` such as `weights of wan`.
    return name.partition(" of ")[2] or None


def write_manifest(bucket: Bucket, path: Path, run: Run, growth: Growth | None, screen: Screen) -> None:
    """Writes the accepted rows of a run, if they are not there. Raises BucketError."""
    there, needed = bucket.size(layout.MANIFEST), path.stat().st_size
    if not growth and there == needed:
        # A submit that changed the run may have been killed before it wrote the rows, which may be as many bytes as before.
        if not run.changes or bucket.read(layout.MANIFEST) == path.read_bytes():
            return
    elif not growth and there is not None:
        screen.note(f"{layout.MANIFEST} in the bucket has {there:,} bytes, needs {needed:,}: written again")
    bucket.upload(path, layout.MANIFEST)


def settle_plain_names(bucket: Bucket, growth: Growth, recorded: Collection[str]) -> None:
    """Lets no changed clip have the plain name of its old video: of one that is recorded it is written, else removed."""
    # In runs of earlier versions the plain name is the only one that a video has.
    named = {clip_id(key) for key in map(layout.rendered_key, bucket.listing("renders")) if key in growth.replaced}

    def settle(key: str) -> None:
        plain = layout.video(clip_id(key))
        try:
            path = bucket.record(key)["video"]["path"] if key in recorded else None
        except (FileNotFoundError, DamagedError):
            path = None
        if path is None and clip_id(key) in named:
            bucket.remove(plain)
        elif path is not None and path != plain:
            bucket.copy(path, plain)

    bucket.map_files(settle, growth.changed)


def undo_growth(bucket: Bucket, growth: Growth, shards: Iterable[int], *, plain_videos: bool) -> None:
    """Brings the run back as it was before a submit that was refused. Raises BucketError."""
    undo_shards(bucket, shards)
    if growth.manifest is None:
        bucket.remove(layout.MANIFEST)
    else:
        bucket.write(layout.MANIFEST, growth.manifest)
    bucket.write_json(layout.RUN, growth.run)
    if plain_videos:
        write_plain_names(bucket, look_for_damage(bucket, growth.replaced, plain_videos=True).misnamed)


def prune(bucket: Bucket, keys: Collection[str], screen: Screen) -> None:
    """Removes records, videos, failures and marks of clips that are in the run's manifest no more (`keys`: those that are).

    Says what it removed. Raises BucketError.
    """
    found: dict[str, tuple[str, int]] = {}
    for folder in ("records", "failures", "attempts", *_BY_CONTENT):
        for name, size in bucket.listing(folder).items():
            key = _key_of(folder, name)
            if _KEY.fullmatch(key) and key not in keys:
                found[f"{folder}/{name}"] = key, size
    gone = {key for key, _ in found.values()}
    ids = {clip_id(key) for key in keys}
    plain = {layout.video(name): name for name in map(clip_id, gone) if name not in ids}
    sizes = bucket.listing("videos")
    # Records first: if this is cut off, no record is left whose video is gone.
    records = [path for path in found if path.startswith("records/")]
    for part in (records, [path for path in found if not path.startswith("records/")], list(plain)):
        bucket.map_files(bucket.remove, part)
    size = sum(each for _, each in found.values()) + sum(sizes.get(path.partition("/")[2], 0) for path in plain)
    screen.note(f"pruned: {_named(gone)} in no row of the manifest, {size / 1e6:,.1f} MB")


def _key_of(folder: str, name: str) -> str:
    if folder == "records":
        return name.removesuffix(".json") if name.endswith(".json") else ""
    if folder in _BY_CONTENT:
        return layout.rendered_key(name)
    return next(iter(layout.attempts_by_key([name.removesuffix(".json")])), "")


def _named(keys: Collection[str]) -> str:
    """Writes a number of clips, with the ids of a few of them."""
    if not keys:
        return "0 clips"
    names = sorted({clip_id(key) for key in keys})
    more = ", ..." if len(names) > SHOWN_CLIPS else ""
    return f"{counted(len(names), 'clip')} ({', '.join(names[:SHOWN_CLIPS])}{more})"
