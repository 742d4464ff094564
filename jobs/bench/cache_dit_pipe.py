"""cache-dit over a pipeline of the diffusers library whose transformer has one list of blocks, as documented."""

from __future__ import annotations

import logging
from typing import Any

HALF = "half"
POLICIES = ("slow", "medium", "fast", "ultra")
"""cache-dit's own masks of steps, from the most computed to the least."""


def own_class(pipeline: type[Any]) -> type[Any]:
    """Returns a class of its own for a pipeline that is to be cached: cache-dit changes the class, and so all of its kind."""
    return type(pipeline.__name__, (pipeline,), {"__module__": pipeline.__module__})


def enable(pipe: Any, config: Any = None, calibrator: Any = None) -> None:
    """Turns cache-dit on, by its defaults without a `config`. The class of `pipe` is one that `own_class` made.

    Raises ValueError with its own words for a pipeline that it does not know.
    """
    import cache_dit

    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "cache_dit"]:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its objects are changed while it runs.
    cache_dit.enable_cache(pipe, cache_config=config or cache_dit.DBCacheConfig(), calibrator_config=calibrator)


def half_config(num_steps: int) -> Any:
    """Returns the setting of which about half is computed: one of its own masks of steps, over all blocks but the first."""
    import cache_dit

    masks = [cache_dit.steps_mask(total_steps=num_steps, mask_policy=policy) for policy in POLICIES]
    mask = min(masks, key=lambda each: abs(sum(each) / num_steps - 0.5))
    return masked_config(mask)


def masked_config(mask: list[int]) -> Any:
    """Returns the setting in which a mask alone decides which steps compute more than the first block."""
    import cache_dit

    return cache_dit.DBCacheConfig(
        Fn_compute_blocks=1,
        num_inference_steps=len(mask),
        steps_computation_mask=mask,
        steps_computation_policy="static",
    )


def computed_share(transformer: Any, *, num_steps: int, passes: int) -> float:
    """Returns the share of calls of blocks that were computed in the last clip, of so many steps of one or two passes."""
    config, num_blocks = transformer._context_kwargs["cache_config"], len(transformer.blocks)
    left_out = num_blocks - config.Fn_compute_blocks - config.Bn_compute_blocks
    cached = len(transformer._cached_steps) + len(transformer._cfg_cached_steps)
    return 1 - cached * left_out / (num_steps * passes * num_blocks)
