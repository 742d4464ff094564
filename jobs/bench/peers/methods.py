"""Ways to leave out work: those of the diffusers library and of cache-dit, and our presets and plans. Each with settings.

A peer is put over a pipeline of the library as its documentation says. What its documentation leaves to the user (a model's
ratios, names of parts, a window of noise) is chosen here, for its best.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from jobs.bench import cache_dit_pipe
from jobs.bench.peers.chosen import CACHE_DIT, DIFFUSERS, OURS
from jobs.bench.peers.pipelines import NotHereError, require
from pab.broadcast.foresight import ForesightRules
from pab.broadcast.rules import Rules, pyramid
from pab.broadcast.step_rules import StepRules
from pab.family import Family

PARTS = [r"blocks\.\d+\.(attn1|attn2|ffn)"]
"""Of a Wan block, what TaylorSeer extrapolates. Its own default names no part of Wan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Over:
    """What a peer is put over. `timestep`: that of the pass that runs, where one pass has both rows of guidance.

    `ratios`: MagCache's, of this model.
    """

    pipe: Any
    num_steps: int
    timestep: Callable[[], float]
    ratios: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A point of a curve. `side`: whose code. `rules`: of ours. `put`: puts a peer over a pipeline.

    `watches`: it decides by what it sees of a clip, so that clips are rendered one by one. `one_pass`: both rows of guidance
    are in one pass, because its state does not tell two passes apart.
    """

    side: str
    method: str
    words: str
    rules: Rules | None = None
    put: Callable[[Over], None] | None = None
    watches: bool = False
    one_pass: bool = False

    @property
    def whose(self) -> str:
        """Whose method."""
        return f"{self.side} {self.method}"

    @property
    def name(self) -> str:
        """Names it in the table."""
        return f"{self.whose}: {self.words}"


def our_settings(family: Family, num_steps: int, plans: Sequence[tuple[str, Rules]]) -> list[Setting]:
    """Returns the family's presets, its presets' rules in wider windows, left out passes, and the plans of files."""

    def ours(method: str, words: str, rules: Rules) -> Setting:
        return Setting(
            side=OURS, method=method, words=words, rules=rules, watches=isinstance(rules, ForesightRules)
        )  # fmt: skip

    found = [
        ours(_method(rules), name, rules) for name, rules in family.presets.items() if name not in ("none", "foresight-n2r3")
    ]  # fmt: skip
    temporal = any(site.kind == "temporal" for site in family.sites)
    for ranges, window in (((2, 4, 6), (50, 950)), ((3, 4, 6), (20, 980)), ((4, 6, 8), (20, 980))):
        spatial, middle, cross = ranges
        rules = pyramid(spatial, middle if temporal else None, cross, window=window)
        words = "-".join(map(str, ranges if temporal else (spatial, cross)))
        found.append(ours("PAB", f"{words} in {window[0]}..{window[1]}", rules))
    for every in (2, 3, 4):
        first, last = -(-num_steps // 4), num_steps - 2
        passes = tuple(s for s in range(num_steps) if s < first or s >= last or (s - first) % every == every - 1)
        left_out = StepRules(num_steps=num_steps, groups=(), passes=passes)
        found.append(ours("passes left out", f"1 of {every} steps computed after the first quarter", left_out))
    return found + [ours("searched plans", name, rules) for name, rules in plans]


def _method(rules: Rules) -> str:
    if isinstance(rules, ForesightRules):
        return "Foresight"
    return "searched plans" if isinstance(rules, StepRules) else "PAB"


def in_diffusers(name: str) -> bool:
    """Whether the installed diffusers has a class."""
    import diffusers

    return hasattr(diffusers, name)


def peer_settings(num_steps: int, num_blocks: int, has: Callable[[str], bool] = in_diffusers) -> list[Setting]:
    """Returns the peers' settings for a Wan of so many blocks: of what is installed. `has`: whether diffusers has a class."""
    makers = {
        "PyramidAttentionBroadcastConfig": _library_pab, "FasterCacheConfig": _faster_cache,
        "FirstBlockCacheConfig": _first_block, "MagCacheConfig": _mag_cache, "TaylorSeerCacheConfig": _taylor,
        "SeaCacheConfig": _sea_cache,
    }  # fmt: skip
    found = [setting for name, make in makers.items() if has(name) for setting in make()]
    return [*found, *(_cache_dit(num_steps, num_blocks) if cache_dit_is_here() else ())]


def missing_methods(methods: Sequence[str], has: Callable[[str], bool] = in_diffusers) -> dict[str, str]:
    """Returns which of the methods, as `WHOSE METHOD`, cannot run with what is installed, and why."""
    found: dict[str, str] = {}
    for name in methods:
        side, _, method = name.partition(" ")
        if side == OURS:
            continue
        try:
            require(side)
        except NotHereError as error:
            found[name] = str(error)
            continue
        config = "PyramidAttentionBroadcast" if method == "PAB" else f"{method.split()[0].removesuffix('Cache')}Cache"
        if side == DIFFUSERS and not has(f"{config}Config"):
            found[name] = f"diffusers {version('diffusers')} has no {config}Config: pip install --upgrade diffusers"
    return found


def cache_dit_is_here() -> bool:
    """Whether cache-dit is installed."""
    return importlib.util.find_spec("cache_dit") is not None


def _theirs(method: str, words: str, config: Callable[[Over], Any], **others: Any) -> Setting:
    def put(over: Over) -> None:
        over.pipe.transformer.enable_cache(config(over))

    return Setting(side=DIFFUSERS, method=method, words=words, put=put, **others)


def _always(config: Callable[[float], Any], threshold: float) -> Callable[[Over], Any]:
    return lambda _over: config(threshold)


def _library_pab() -> list[Setting]:
    from diffusers import PyramidAttentionBroadcastConfig

    def setting(spatial: int, cross: int, low: int, high: int) -> Setting:
        return _theirs(
            "PAB",
            f"{spatial}-{cross} in {low}..{high}",
            lambda over: PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=spatial,
                cross_attention_block_skip_range=cross,
                spatial_attention_timestep_skip_range=(low, high),
                cross_attention_timestep_skip_range=(low, high),
                current_timestep_callback=over.timestep,
            ),
            one_pass=True,
        )

    return [setting(2, 6, 100, 850), setting(2, 6, 50, 950), setting(3, 6, 20, 980), setting(4, 8, 20, 980)]


def _faster_cache() -> list[Setting]:
    from diffusers import FasterCacheConfig

    def setting(every: int, high: int, attention_high: int) -> Setting:
        return _theirs(
            "FasterCache",
            f"one row {every - 1} of {every} steps below {high}, attention below {attention_high}",
            lambda over: FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(-1, attention_high),
                unconditional_batch_skip_range=every,
                unconditional_batch_timestep_skip_range=(-1, high),
                attention_weight_callback=lambda _module: 0.3,
                current_timestep_callback=over.timestep,
                tensor_format="BCFHW",
            ),
            one_pass=True,
        )

    return [setting(2, 641, 641), setting(5, 641, 681), setting(5, 850, 850), setting(8, 950, 950)]


def _first_block() -> list[Setting]:
    from diffusers import FirstBlockCacheConfig

    return [
        _theirs("FirstBlockCache", f"threshold {value}", _always(FirstBlockCacheConfig, value), watches=True)
        for value in (0.03, 0.06, 0.1, 0.2)
    ]  # fmt: skip


def _mag_cache() -> list[Setting]:
    from diffusers import MagCacheConfig

    def setting(threshold: float, most: int, kept: float) -> Setting:
        return _theirs(
            "MagCache",
            f"threshold {threshold}, at most {most}, first {kept:.0%} whole",
            lambda over: MagCacheConfig(
                threshold=threshold,
                max_skip_steps=most,
                retention_ratio=kept,
                num_inference_steps=over.num_steps,
                mag_ratios=list(over.ratios),
            ),
        )

    return [
        setting(0.06, 1, 0.2),
        setting(0.06, 3, 0.2),
        setting(0.12, 2, 0.2),
        setting(0.24, 4, 0.2),
        setting(0.5, 6, 0.1),
    ]


def _taylor() -> list[Setting]:
    import torch
    from diffusers import TaylorSeerCacheConfig

    def setting(every: int, order: int, first: int, *, lite: bool) -> Setting:
        return _theirs(
            "TaylorSeer lite" if lite else "TaylorSeer",
            f"each {every} steps after {first}, order {order}",
            lambda _: TaylorSeerCacheConfig(
                cache_interval=every,
                max_order=order,
                disable_cache_before_step=first,
                taylor_factors_dtype=torch.float32,
                use_lite_mode=lite,
                cache_identifiers=None if lite else PARTS,
            ),
        )

    each = [(2, 1, 4), (3, 1, 4), (4, 1, 3), (2, 2, 6)]
    return [setting(*values, lite=lite) for lite in (False, True) for values in each]


def _sea_cache() -> list[Setting]:
    from diffusers import SeaCacheConfig

    return [
        _theirs("SeaCache", f"threshold {value}", _always(SeaCacheConfig, value), watches=True)
        for value in (0.1, 0.25, 0.5)
    ]


def _cache_dit(num_steps: int, num_blocks: int) -> list[Setting]:
    from cache_dit import DBCacheConfig, TaylorSeerCalibratorConfig, steps_mask

    def setting(words: str, config: Callable[[], Any], *, taylor: bool = False, watches: bool) -> Setting:
        def put(over: Over) -> None:
            calibrator = TaylorSeerCalibratorConfig(taylorseer_order=1) if taylor else None
            cache_dit_pipe.enable(over.pipe, config(), calibrator)

        method = "cache-dit with TaylorSeer" if taylor else "cache-dit"
        return Setting(side=CACHE_DIT, method=method, words=words, put=put, watches=watches)

    def watching(threshold: float, first: int) -> Callable[[], Any]:
        return lambda: DBCacheConfig(
            Fn_compute_blocks=1,
            max_warmup_steps=first,
            residual_diff_threshold=threshold,
            num_inference_steps=num_steps,
        )

    default = (
        [setting("its default", DBCacheConfig, watches=True)] if num_blocks > DBCacheConfig().Fn_compute_blocks else []
    )
    by_change = [
        setting(f"threshold {threshold} after {first}", watching(threshold, first), watches=True)
        for threshold, first in ((0.08, 8), (0.2, 4))
    ]
    masks = {policy: steps_mask(total_steps=num_steps, mask_policy=policy) for policy in cache_dit_pipe.POLICIES}
    by_mask = [
        setting(f"mask {policy!r}", partial(cache_dit_pipe.masked_config, list(mask)), taylor=taylor, watches=False)
        for taylor in (False, True)
        for policy, mask in masks.items()
    ]
    return default + by_change + by_mask


def mag_ratios(render: Callable[[Callable[[Over], None]], object], num_steps: int) -> list[float]:
    """Returns MagCache's ratios of a model: it prints those of each branch when it calibrates; their means are taken."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()
    config = MagCacheConfig(calibrate=True, num_inference_steps=num_steps)
    with contextlib.redirect_stdout(printed):
        render(lambda over: over.pipe.transformer.enable_cache(config))
    found = [ast.literal_eval(line) for line in printed.getvalue().splitlines() if line.startswith("[1.0")]
    assert len(found) == 2, f"MagCache printed {len(found)} lists of ratios, one for each branch was expected"
    return [sum(pair) / 2 for pair in zip(*found, strict=True)]
