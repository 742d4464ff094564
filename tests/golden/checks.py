"""Which check serves which kind of reference numbers."""

from collections.abc import Callable, Mapping

from tests.golden import broadcast_traces, open_sora_loop, rectified_flow, stdit3
from tests.golden.cases import Case

CHECKS: Mapping[str, Callable[[Case], None]] = {
    "stdit3": stdit3.check,
    "rflow": rectified_flow.check,
    "e2e_stdit3": open_sora_loop.check,
    "pab/open_sora": broadcast_traces.check,
}
