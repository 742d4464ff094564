"""Which check serves which kind of reference numbers."""

from collections.abc import Callable, Mapping

from tests.golden import (
    broadcast_traces,
    causal_vae,
    latte,
    noise_loop,
    open_sora_loop,
    open_sora_pipeline,
    open_sora_plan,
    open_sora_vae,
    rectified_flow,
    sequence_parallel,
    stdit3,
)
from tests.golden.cases import Case

CHECKS: Mapping[str, Callable[[Case], None]] = {
    "stdit3": stdit3.check,
    "rflow": rectified_flow.check,
    "e2e_stdit3": open_sora_loop.check,
    "vae_os12": open_sora_vae.check,
    "vae_osp110": causal_vae.check,
    "open_sora_pipeline": open_sora_pipeline.check,
    "dsp": sequence_parallel.check,
    "latte": latte.check,
    "osp110": latte.check,
    "osp120": open_sora_plan.check,
    "e2e_latte": noise_loop.check,
    "e2e_osp110": noise_loop.check,
    "e2e_osp120": noise_loop.check,
    "pab/open_sora": broadcast_traces.check,
    "pab/latte": broadcast_traces.check,
    "pab/open_sora_plan_v110": broadcast_traces.check,
    "pab/open_sora_plan_v120": broadcast_traces.check,
    "pab/cogvideox": broadcast_traces.check,
    "pab/vchitect": broadcast_traces.check_with_wrapping_counters,
}
