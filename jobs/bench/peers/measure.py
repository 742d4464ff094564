"""Methods that leave out work, on the same trained weights: what is computed, how long it takes, what videos lose.

Every setting renders the same prompts, which training left out, with the same seeds, noise and sampler. Each clip is
compared with itself, rendered in the same way with everything computed. Settings that decide by what they see of a clip
render one clip at a time; the others all clips in one batch. Seconds are those of a batch that fills the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from jobs.bench.peers.chosen import DIFFUSERS, Chosen
from jobs.bench.peers.clips import Clips, fullest_batch
from jobs.bench.peers.measured_rows import FAILED, FAULTS, NO_TIME, NOT_RUN, Rows, why_of
from jobs.bench.peers.methods import Setting, mag_ratios, missing_methods, our_settings, peer_settings
from jobs.bench.peers.pipelines import NotHereError, require
from jobs.bench.peers.work import Work, limited, plans_of, requests_of
from pab.broadcast.rules import NO_BROADCAST
from pab.families import FAMILIES
from pab.family import LoadRequest

Json = dict[str, Any]
_CALIBRATION_SEED, _CLIPS_SEED = 7, 1


def measure(work: Work, device: str, tell: Callable[[str], None]) -> Iterator[Json]:
    """Yields what a model is and, one by one, what its settings did.

    Raises NotHereError where a library is missing that the model needs, and what loading it raises.
    """
    model = _about(work)
    with limited(work), torch.inference_mode():
        if DIFFUSERS in FAMILIES[work.family].libraries:
            require(DIFFUSERS)
        clips = _loaded(work, device)
        requests = requests_of(work, work.clips, _CLIPS_SEED)
        settings = settings_of(work, clips, requests[0].num_steps)
        if clips.has_peers:
            clips.watch(requests[0])
        if any(setting.method == "MagCache" for setting in settings):
            asked = requests_of(work, min(2, work.clips), _CALIBRATION_SEED)
            clips.ratios = mag_ratios(lambda put: clips.pipeline(put)(asked), requests[0].num_steps)
        many = requests_of(work, work.max_batch, _CLIPS_SEED)
        batch = fullest_batch(clips.ours(NO_BROADCAST), many, clips.device, enough_s=work.enough_s)
    tell(f"{work.family}: {len(settings)} settings; {batch} clips fill the device")
    with ThreadPoolExecutor(work.threads) as pool:
        rows = Rows(work=work, clips=clips, requests=requests, batch=many[:batch], pool=pool)
        for setting in settings:
            yield {**model, "batch": batch, "rows": [rows.row(setting)]}


def measure_chosen(work: Work, chosen: Chosen, device: str, tell: Callable[[str], None]) -> Iterator[Json]:
    """Yields as `measure` does, and rows of what cannot run here: whatever a library raises, other models go on."""
    missing = missing_methods(chosen.methods)
    for name, told in missing.items():
        yield _without_figures(work, name, NOT_RUN, told)
    others = [name for name in chosen.methods if name not in missing]
    begun = False
    try:
        if work.is_over:
            raise NotHereError(NO_TIME)
        for part in measure(work, device, tell) if others else ():
            begun = True
            yield part
        return
    except NotHereError as error:
        status, told = NOT_RUN, str(error)
    except FAULTS as error:
        if begun:
            raise
        status, told = FAILED, why_of(error)
    for name in others:
        yield _without_figures(work, name, status, told)


def _about(work: Work) -> Json:
    (request,) = requests_of(work, 1, _CLIPS_SEED)
    return {
        "family": work.family, "clips": work.clips, "batch": None, "precision": _precision(work),
        "clip": {key: getattr(request, key) for key in ("num_frames", "height", "width", "num_steps")},
    }  # fmt: skip


def _precision(work: Work) -> str:
    return work.precision or FAMILIES[work.family].precisions[0]


def _without_figures(work: Work, name: str, status: str, why: str) -> Json:
    side, _, method = name.partition(" ")
    return {**_about(work), "rows": [{"side": side, "method": method, "setting": "-", "status": status, "why": why}]}


def _loaded(work: Work, device: str) -> Clips:
    family, precision = FAMILIES[work.family], _precision(work)
    model = family.load(LoadRequest(weights=work.weights, precision=precision, device=device))
    return Clips(family=family, model=model, precision=precision, device=torch.device(device))


def settings_of(work: Work, clips: Clips, num_steps: int) -> list[Setting]:
    """Returns the settings that are measured: ours, plans of files and, where peers know the model, theirs."""
    settings = our_settings(clips.family, num_steps, plans_of(clips.family, work.plans))
    if clips.has_peers:
        settings += peer_settings(num_steps, clips.num_blocks)
    methods = None if work.chosen is None else work.chosen.methods
    settings = [each for each in settings if work.only in each.name and (methods is None or each.whose in methods)]
    return list({each.whose: each for each in settings}.values()) if work.last_of_each else settings
