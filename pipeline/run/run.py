"""run.json: what a run is. A later submit must mean the same pixels, or is told what differs; its manifest may change."""

from __future__ import annotations

import platform
import re
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jobs.pixel_settings import PLAIN_CRF
from jobs.render_settings import CompileChoice, KeepChoice
from jobs.store import layout
from jobs.store.bucket import Bucket, DamagedError
from jobs.store.retry import RetryPolicy
from jobs.version import VERSION, code_digest
from pab.families import FAMILIES
from pab.family import AUTO_PRECISION
from pipeline.exits import UsageError
from pipeline.run.rules import RunRules
from pipeline.run.settings import RunSettings, absolute
from pipeline.run.weights import RunWeights

FORMAT = 1
PACKAGES = ("torch", "numpy", "pyarrow", "submitit", "dask", "distributed", "fsspec", "s3fs", "imageio-ffmpeg")
_BEFORE = {
    "--compile": "off",
    "--attention": "default",
    "--keep": "full",
    "--linears": "full",
    "--decode": "published",
    "--crf": str(PLAIN_CRF),
    "--lora": "none",
    "--sampling": "published",
    "--flow-shift": "published",
    "--guidance-scale-2": "the first",
    "--negative-prompt": "none",
}
"""What runs rendered with before they said so."""
_PRECISION_OF = "precision of "
_UNSAID = {"precision": "as --precision", "LoRAs": "none", "--compile": "as --compile", "kept outputs": "as asked"}
"""By the first words of a family's own setting, what is meant where it is not said."""
_AGAIN = "remove it and submit the same manifest again: what is recorded stays"
RETRY_POLICY = RetryPolicy(total_s=20.0)
"""The command line waits less long for a bucket than a job does: somebody sits before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The parts of run.json that decide something. `pixels`: setting -> value of all that changes pixels.

    `weights`: of the families that rows name; a later submit renders with these, whatever the hub has by then. `exclusive`:
    whether the bucket refuses to create what exists, tried when the run began; None in runs from before that was tried.
    """

    run_id: str
    manifest_digest: str
    num_clips: int
    pixels: Mapping[str, str]
    weights: Mapping[str, RunWeights]
    exclusive: bool | None = None
    kept: Mapping[str, KeepChoice] = field(default_factory=dict)
    """By family, what was chosen so that kept outputs fit; a later submit renders the same way, on any device."""
    weighed: Mapping[str, CompileChoice] = field(default_factory=dict)
    """By family, what `--compile auto` came to; a later submit goes on so, however few clips are left."""
    broadcasts: Mapping[str, str] = field(default_factory=dict)
    """By family, the preset that rows which name no broadcast got; a later version may have another default."""
    changes: int = 0
    """How often its manifest was changed since it began."""
    c2pa: bool = False
    """Whether its videos were to be signed when it began; a later submit may say otherwise, and is told."""


def open_bucket(output: str) -> Bucket:
    """Returns the run's bucket, as patient as a person."""
    return Bucket(absolute(output), retry_policy=RETRY_POLICY)


def pixel_settings(settings: RunSettings, rules: RunRules) -> dict[str, str]:
    """Returns by setting what changes pixels: what `submit` compares and names."""
    render = settings.render
    family, execution = rules.rows[render.model], render.execution(rules.families[render.model])
    precision = render.precision_of(rules.families[render.model])
    broadcast = str(family.defaults["broadcast"])
    compiled = "on with fused kernels" if execution.kernels else "on"
    rest = {name: found for name, found in rules.weights.items() if name != render.model}
    others = {f"weights of {name}": str(found) for name, found in rest.items()}
    others |= {f"LoRAs of {name}": found.loras_text for name, found in rest.items() if found.loras}
    sampled = {
        "--sampling": render.sampling,
        "--flow-shift": render.flow_shift,
        "--guidance-scale-2": render.guidance_scale_2,
        "--negative-prompt": render.negative_prompt,
    }
    in_others = {name: render.precision_of(rules.families[name]) for name in rest}
    others |= {f"{_PRECISION_OF}{name}": each for name, each in in_others.items() if each != precision}
    others |= {f"--compile of {name}": "off" for name in rest if render.compile and not render.compiles(name)}
    chosen = {name: choice for name, choice in render.kept.items() if name != render.model and name in rules.weights}
    others |= {
        f"kept outputs of {name}": f"{each.keep} {each.broadcast or ''}".strip() for name, each in chosen.items()
    }
    return {
        "--model": render.model,
        "--weights": str(rules.weights[render.model]),
        "--lora": rules.weights[render.model].loras_text,
        **others,
        "--precision": precision,
        "--broadcast": f"{broadcast} ({family.broadcasts[broadcast]})",
        "--compile": compiled if execution.compiled else "off",
        "--attention": execution.attention,
        "--keep": execution.keep,
        "--linears": execution.linears,
        # Whatever the run's own family can: rows may name others.
        "--decode": render.decode,
        "--crf": str(render.crf),
        **{name: _BEFORE[name] if value is None else str(value) for name, value in sampled.items()},
    }


def as_begun(
    settings: RunSettings,
    found: Run | None,
    *,
    asked: Mapping[str, object],
    kept: Mapping[str, KeepChoice] | None = None,
    weighed: Mapping[str, CompileChoice] | None = None,
) -> RunSettings:
    """Returns settings that go on as a run began. `asked`: what the user said of `--compile` and `--decode`.

    `kept`, `weighed`: what was chosen for a run that does not exist yet. What "auto" means depends on the machine, and on
    the families whose blocks this version can compile.
    """
    if found is None:
        return replace(settings, render=replace(settings.render, kept=kept or {}, weighed=weighed or {}))
    settings = replace(settings, render=replace(settings.render, kept=found.kept))
    render = settings.render
    if render.precision == AUTO_PRECISION and _has_one_precision(found):
        render = replace(render, precision="bfloat16")
    if asked["compile"] == "auto":
        begun_eager = not found.weighed and _begun(found, "--compile") == _BEFORE["--compile"]
        render = replace(render, compile=render.compile and not begun_eager, weighed=found.weighed)
    if asked["decode"] == "auto" and _begun(found, "--decode") == _BEFORE["--decode"]:
        render = replace(render, decode="published")
    return settings if render == settings.render else replace(settings, render=render)


def _has_one_precision(found: Run) -> bool:
    # On a GPU runs of before were of bfloat16 in all families. The same is meant by runs whose families all have that.
    others = any(name.startswith(_PRECISION_OF) for name in found.pixels)
    return found.pixels.get("--precision") == "bfloat16" and not others


def begun_notes(settings: RunSettings, rules: RunRules, chosen: Collection[str]) -> list[str]:
    """Returns what is told of a run that goes on as it began where a new one would differ. `chosen`: what the user set."""
    render, now = settings.render, {name: FAMILIES[name] for name in rules.weights if name in FAMILIES}
    notes = [
        f"this run began in {render.precision} and goes on so; a new run of {name} on a GPU is in {family.gpu_precision} "
        "(--precision), with another --output"
        for name, family in now.items()
        if render.device == "cuda" and "precision" not in chosen and render.precision_of(family) != family.gpu_precision
    ]
    return notes + [
        f"rows of {name} that name no broadcast got {begun} when this run began, and go on with it; in a new run, with "
        f"another --output, they get {family.defaults.broadcast}"
        for name, family in now.items()
        if (begun := rules.families[name].defaults.broadcast) != family.defaults.broadcast and "broadcast" not in chosen
    ]


def _begun(found: Run, name: str) -> str | None:
    return found.pixels.get(name, _BEFORE.get(name) or _UNSAID.get(name.partition(" of ")[0]))


def asked_run(settings: RunSettings, rules: RunRules, *, manifest_digest: str, num_clips: int) -> Run:
    """Returns the run that these settings ask for, with a new id. `rules` have seen all rows."""
    return Run(
        run_id=uuid.uuid4().hex[:12],
        manifest_digest=manifest_digest,
        num_clips=num_clips,
        pixels=pixel_settings(settings, rules),
        weights=dict(rules.weights),
        kept=dict(settings.render.kept),
        weighed=dict(settings.render.weighed),
        broadcasts={name: rules.families[name].defaults.broadcast for name in rules.weights},
        c2pa=settings.render.c2pa,
    )


def start_run(bucket: Bucket, asked: Run, settings: RunSettings) -> tuple[Run, bool]:
    """Creates run.json, or takes the run that is there, of the same pixels. Returns the run, and whether it is a new one.

    Finds out, once for a run, whether the bucket creates exclusively. Raises UsageError naming what differs, BucketError.
    """
    run = replace(asked, exclusive=bucket.is_local or bucket.test_exclusive())
    document = _facts(run) | {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.to_dict(),
        "versions": versions(),
    }
    if bucket.create_json(layout.RUN, document):
        return run, True
    found = load_run(bucket)
    check_same(found, run, bucket.url)
    return found, False


def _facts(run: Run) -> dict[str, Any]:
    # `changes` is counted from what run.json says of each.
    return {name: said for name, said in asdict(run).items() if name != "changes"}


def rewrite_run(
    bucket: Bucket, before: Mapping[str, Any], run: Run, settings: RunSettings, note: Mapping[str, object]
) -> None:
    """Writes run.json of a run whose manifest changes. `before`: what it holds; `note`: is added to its `changes`."""
    changes = [*_changes(before), dict(note) | {"versions": versions()}]
    bucket.write_json(layout.RUN, dict(before) | _facts(run) | {"settings": settings.to_dict(), "changes": changes})


def _changes(document: Mapping[str, Any]) -> list[Any]:
    changes = document.get("changes", [])
    return changes if isinstance(changes, list) else []


def undo_run(bucket: Bucket, shards: Iterable[int]) -> None:
    """Removes what a submit wrote that began a run and then was refused, so that the output is free. Raises BucketError."""
    undo_shards(bucket, shards)
    for path in (layout.MANIFEST, layout.REFERENCES, layout.RUN):
        bucket.remove(path)


def undo_shards(bucket: Bucket, shards: Iterable[int]) -> None:
    """Removes shards of jobs that the cluster did not take. Raises BucketError."""
    for number in shards:
        bucket.remove(layout.shard(number))


def find_run(bucket: Bucket) -> Run | None:
    """Returns the run that lives here, or None; the bucket then knows whether it creates exclusively.

    Raises UsageError if run.json is of another format, DamagedError, else BucketError.
    """
    try:
        document = bucket.read_json(layout.RUN)
    except FileNotFoundError:
        return None
    run = _read(document, bucket.url)
    if run.exclusive is not None:
        bucket.exclusive = run.exclusive
    return run


def load_run(bucket: Bucket) -> Run:
    """Returns the run that lives here. Raises UsageError if none does."""
    run = find_run(bucket)
    if run is None:
        raise UsageError(f"{bucket.url} holds no run.json, so no run; check the URL, or submit a manifest there")
    return run


def _read(document: Mapping[str, Any], url: str) -> Run:
    if document.get("format") != FORMAT:
        raise UsageError(
            f"{url}/run.json has format={document.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it, or another --output"
        )
    try:
        weights = {name: RunWeights.read(values) for name, values in document.get("weights", {}).items()}
        kept = {name: KeepChoice(**values) for name, values in document.get("kept", {}).items()}
        weighed = {name: CompileChoice(**values) for name, values in document.get("weighed", {}).items()}
        parts = {name: document[name] for name in ("run_id", "manifest_digest", "num_clips", "pixels")}
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{url}/{layout.RUN}", f"it is damaged ({error!r})", _AGAIN) from error
    # The id becomes a folder's name on this machine, and whoever writes to the bucket must not choose that.
    if not re.fullmatch(r"[0-9a-f]{12}", str(parts["run_id"])):
        raise DamagedError(f"{url}/{layout.RUN}", f"run_id={parts['run_id']!r}, needs 12 hex digits", _AGAIN)
    return Run(
        **parts,
        weights=weights,
        exclusive=document.get("exclusive"),
        kept=kept,
        weighed=weighed,
        broadcasts=_broadcasts(document, parts["pixels"]),
        changes=len(_changes(document)),
        c2pa=document.get("c2pa") is True,
    )


def _broadcasts(document: Mapping[str, Any], pixels: Mapping[str, str]) -> dict[str, str]:
    """Returns `Run.broadcasts`; of a run of before that did not say them, what it says of `--model`, if nobody chose it."""
    if "broadcasts" in document:
        return dict(document["broadcasts"])
    model, said = pixels.get("--model", ""), pixels.get("--broadcast", "").partition(" (")[0]
    asked = document.get("settings", {}).get("render", {}).get("broadcast")
    return {model: said} if model and said and asked is None else {}


def check_same(found: Run, asked: Run, url: str) -> None:
    """Raises UsageError naming what differs, if the clips asked for are not the ones of the run that is there."""
    if found.manifest_digest == asked.manifest_digest:
        return
    changed = changed_pixels(found, asked) or [changed_rows(found, asked)]
    raise UsageError(
        f"{url} holds another run: {'; '.join(changed)}. Give this one another --output, or submit the manifest and "
        "settings of that run (they are in its run.json) to go on with it"
    )


def changed_pixels(found: Run, asked: Run) -> list[str]:
    """Returns in words, by their flags, the settings that change pixels and differ, of families that both runs have."""
    names = [
        name
        for name in dict.fromkeys([*asked.pixels, *found.pixels])
        if ((family := name.partition(" of ")[2]) in found.weights and family in asked.weights) or not family
    ]
    return [
        f"{name} was {_begun(found, name)}, now {_begun(asked, name)}"
        for name in names
        if _begun(found, name) != _begun(asked, name)
    ]


def changed_rows(found: Run, asked: Run) -> str:
    """Returns in words how the manifests of two runs of the same settings differ."""
    if found.num_clips != asked.num_clips:
        return f"the manifest had {found.num_clips} rows, now {asked.num_clips}"
    return "the manifest has other rows, or other bytes in a reference" + _other_defaults(found)


def _other_defaults(found: Run) -> str:
    # Runs of before do not say the defaults of families besides their --model.
    unknown = [name for name in found.weights if name not in found.broadcasts]
    return f", or its rows of {', '.join(unknown)} got another broadcast by default then: name it" if unknown else ""


def defaults_not_known(found: Run, asked: Run) -> list[str]:
    """Returns families that a run of before began with and of which it does not say the default broadcast."""
    mine = found.weights or asked.weights
    return [name for name in asked.weights if name in mine and name not in found.broadcasts]


def versions() -> dict[str, str]:
    """Returns the versions of Python, this program and what it renders with."""
    found = {"python": platform.python_version(), "pab-pipeline": VERSION, "code": code_digest()}
    return found | {package: _version(package) for package in PACKAGES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
