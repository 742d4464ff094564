"""`--c2pa`: what is asked for is tried at submit, before anything is planned or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.provenance.certificate import make_pair_for_tries, read_pair, warnings_of
from jobs.provenance.errors import ProvenanceError
from jobs.provenance.library import load_library
from jobs.provenance.sign import VideoSigner, open_signer
from jobs.render_settings import RenderSettings
from pipeline.exits import UsageError
from pipeline.run.options import Chosen
from pipeline.run.settings import RunSettings, absolute

if TYPE_CHECKING:
    from pipeline.run.run import Run

FOLDER = "c2pa"
"""Where in a run's private folder on this machine its certificate for tries is."""
_FOR_TRIES = (
    "videos are signed with a certificate made for tries: whoever reads them is told that it is not trusted. For videos that "
    "you give away name your own by --c2pa-cert and --c2pa-key (docs/provenance.md)"
)


def signing_paths(value: Mapping[str, object], chosen: Mapping[str, Chosen]) -> dict[str, str | None]:
    """Returns the paths of certificate and key as absolute ones. Raises UsageError for settings that do not fit together."""
    said = {name: chosen[name] for name in ("c2pa_cert", "c2pa_key", "c2pa_prompt")}
    for each in said.values():
        if each.source != "default" and not value["c2pa"]:
            raise UsageError(
                f"{each.source} is of signing videos, and --c2pa is not given; add it, or leave this one out"
            )
    certificate, key = said["c2pa_cert"], said["c2pa_key"]
    if (certificate.value is None) is not (key.value is None):
        there, missing = ("--c2pa-cert", "--c2pa-key") if key.value is None else ("--c2pa-key", "--c2pa-cert")
        raise UsageError(f"{there} needs {missing} too: the certificate and its key; or leave both out, for tries")
    for name, each in said.items():
        # Never said again: it would stand on a screen and in run.json.
        if "-----BEGIN" in str(each.value) or "\n" in str(each.value):
            raise UsageError(f"{each.source} holds a certificate or key itself; give the path of its file")
        if name != "c2pa_prompt" and "://" in str(each.value):
            raise UsageError(f"{each.source}={each.value!r} is a URL; give the path of a file that jobs can read too")
    return {
        name: absolute(str(each.value)) if each.value else None for name, each in said.items() if name != "c2pa_prompt"
    }


def try_signing(render: RenderSettings) -> list[str]:
    """Tries the certificate and key that the user names, and returns what to warn of.

    Raises UsageError if they cannot sign, or if the library is missing.
    """
    if not render.c2pa:
        return []
    try:
        if render.c2pa_cert is None or render.c2pa_key is None:
            load_library()
            return [_FOR_TRIES]
        pair = read_pair(Path(render.c2pa_cert), Path(render.c2pa_key))
        VideoSigner(pair).check()
    except ProvenanceError as error:
        raise UsageError(f"--c2pa: {error}") from error
    return warnings_of(pair, Path(render.c2pa_key)) + ([_FOR_TRIES] if pair.for_tries else [])


def with_certificate(settings: RunSettings, folder: Path) -> RunSettings:
    """Returns the settings with which jobs sign: where the user names no certificate, one for tries is made.

    `folder`: the run's private one on this machine, which jobs see. Raises UsageError.
    """
    render = settings.render
    if not render.c2pa or render.c2pa_cert is not None:
        return settings
    try:
        certificate, key = make_pair_for_tries(folder / FOLDER)
        open_signer(str(certificate), str(key)).check()
    except ProvenanceError as error:
        raise UsageError(f"--c2pa: {error}") from error
    return replace(settings, render=replace(render, c2pa_cert=str(certificate), c2pa_key=str(key)))


def signing_notes(render: RenderSettings, found: Run | None, output: str) -> list[str]:
    """Returns what is told of a run whose videos are signed in part. `found`: the run that is there."""
    if found is None or found.c2pa == render.c2pa:
        return []
    if found.c2pa:
        return ["this run began with --c2pa, and this submit does not say it: the videos it makes carry no manifest"]
    told = "this run began without --c2pa: what is recorded already carries no manifest"
    return [f'{told}; to render it again: report {output}, then rerender {output} --where "c2pa = none"']
