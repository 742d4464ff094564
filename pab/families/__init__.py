"""The model families, listed by hand."""

from __future__ import annotations

from collections.abc import Mapping

from pab.families.cogvideox.family import COGVIDEOX_2B, COGVIDEOX_5B, COGVIDEOX_5B_I2V
from pab.families.demo.family import DEMO
from pab.families.demo_wan.family import DEMO_WAN
from pab.families.hunyuan_video.family import (
    HUNYUAN_VIDEO,
    HUNYUAN_VIDEO_I2V,
    HUNYUAN_VIDEO_I2V_33CH,
    SKYREELS_V1,
)
from pab.families.hunyuan_video_15.family import HUNYUAN_VIDEO_15_480P, HUNYUAN_VIDEO_15_720P
from pab.families.latte.family import LATTE
from pab.families.ltx.family import LTX, LTX_2B, LTX_13B, LTX_13B_DISTILLED
from pab.families.ltx2.family import LTX2
from pab.families.open_sora.family import OPEN_SORA
from pab.families.open_sora_plan.family import (
    OPEN_SORA_PLAN_V110,
    OPEN_SORA_PLAN_V110_221,
    OPEN_SORA_PLAN_V120,
    OPEN_SORA_PLAN_V120_29,
    OPEN_SORA_PLAN_V120_720P,
)
from pab.families.wan.family import (
    WAN,
    WAN22_5B,
    WAN22_A14B,
    WAN22_A14B_I2V,
    WAN_14B,
    WAN_14B_I2V_480P,
    WAN_14B_I2V_720P,
)
from pab.family import Family

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        DEMO,
        DEMO_WAN,
        OPEN_SORA,
        LATTE,
        OPEN_SORA_PLAN_V110,
        OPEN_SORA_PLAN_V110_221,
        OPEN_SORA_PLAN_V120,
        OPEN_SORA_PLAN_V120_29,
        OPEN_SORA_PLAN_V120_720P,
        WAN,
        WAN_14B,
        WAN22_A14B,
        WAN22_5B,
        WAN_14B_I2V_480P,
        WAN_14B_I2V_720P,
        WAN22_A14B_I2V,
        COGVIDEOX_2B,
        COGVIDEOX_5B,
        COGVIDEOX_5B_I2V,
        LTX,
        LTX_2B,
        LTX_13B,
        LTX_13B_DISTILLED,
        LTX2,
        HUNYUAN_VIDEO,
        HUNYUAN_VIDEO_I2V,
        HUNYUAN_VIDEO_I2V_33CH,
        SKYREELS_V1,
        HUNYUAN_VIDEO_15_480P,
        HUNYUAN_VIDEO_15_720P,
    )
}


def find_family(name: str) -> Family:
    """Returns a family by name. Raises ValueError naming the families there are."""
    if name not in FAMILIES:
        raise ValueError(f"model={name!r} is not known, allowed: {', '.join(FAMILIES)}")
    return FAMILIES[name]
