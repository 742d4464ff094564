"""Families of the diffusers library with passes shared by ranks: the numbers of one rank, and the planned traffic."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from pab.parallel.parts import even_parts, largest_part, sent_elements
from pab.sampling.denoise import Denoised
from tests.pab.denoised import relative
from tests.pab.library_ranks import TINY, Case, render
from tests.pab.library_worlds import WORLDS
from tests.ranks import run_on_ranks

BOUND = 1e-5
"""Largest difference of float32 latents of several ranks from one rank's, over the largest latent."""
IMAGE = (1, 16, 16)
"""One token: only the first rank has any, the others have padding."""
THREE, FOUR, BRANCHES_TOO, CLIPS_TOO = (1, 1, 3), (1, 1, 4), (1, 2, 2), (2, 1, 2)
"""dp, cfg, sp."""
PAIRS = ("wan", "cogvideox_5b", "ltx", "hunyuan_video")
CASES = {
    3: [
        *(Case(name=name, mesh=THREE) for name in ("wan", "cogvideox_2b", "ltx", "hunyuan_video")),
        Case(name="wan", mesh=THREE, rules="none", size=IMAGE),
        Case(name="cogvideox_5b", mesh=THREE, guidance_scale=1.0),
    ],
    4: [
        *(Case(name=name, mesh=FOUR, rules=rules) for name in PAIRS for rules in ("none", "every_other")),
        Case(name="cogvideox_2b", mesh=FOUR, rules="none"),
        *(Case(name=name, mesh=BRANCHES_TOO) for name in ("wan", "cogvideox_5b", "ltx", "skyreels_v1")),
        *(Case(name=name, mesh=CLIPS_TOO) for name in (*PAIRS, "cogvideox_2b")),
        Case(name="wan22_a14b", mesh=CLIPS_TOO, num_steps=4),
        Case(name="wan22_5b", mesh=FOUR),
        *(Case(name=name, mesh=CLIPS_TOO) for name in ("wan_14b_i2v_480p", "cogvideox_5b_i2v")),
        Case(name="hunyuan_video_15_480p", mesh=FOUR),
        Case(name="hunyuan_video_i2v", mesh=FOUR),
        Case(name="hunyuan_video_i2v_33ch", mesh=BRANCHES_TOO),
        Case(name="ltx_2b", mesh=CLIPS_TOO),
    ],
}
"""By number of ranks. The small models have two heads: of three and four ranks the last ones get empty ones."""
Ranks = list[dict[Case, Denoised]]


@pytest.fixture(scope="module")
def weights(tiny_weights) -> Path:
    return tiny_weights(*WORLDS)


@pytest.fixture(scope="module")
def one_rank(weights) -> dict[Case, Denoised]:
    return render(weights, list(dict.fromkeys(case.alone for cases in CASES.values() for case in cases)))


@pytest.fixture(scope="module")
def ranks_of(weights) -> Callable[[int], Ranks]:
    """What the ranks of a group of so many rendered."""
    return cache(lambda num_ranks: run_on_ranks(num_ranks, render, weights, CASES[num_ranks]))


@pytest.mark.parametrize("num_ranks", CASES)
def test_ranks_that_share_passes_agree_with_one_rank(one_rank, ranks_of, num_ranks):
    ranks = ranks_of(num_ranks)
    for rank in ranks:
        for case, done in rank.items():
            alone = one_rank[case.alone].latents
            assert alone.std() > 0.1
            assert relative(done.latents, alone) < BOUND, case
            assert torch.equal(done.latents, ranks[0][case].latents), f"{case}: ranks end with different latents"


@pytest.mark.parametrize("num_ranks", CASES)
def test_a_reused_attention_skips_its_all_to_alls(ranks_of, num_ranks):
    for case, done in ranks_of(num_ranks)[0].items():
        tiny = TINY[case.name]
        one_pass = tiny.both_rows_at_once or tiny.is_told_guidance or case.mesh[1] == 2 or case.guidance_scale == 1.0
        assert done.passes == (1 if one_pass else 2)
        assert done.traffic.all_to_alls == done.plan.all_to_alls * done.passes == 2 * done.computed["spatial"]
        assert (done.plan.all_to_alls < done.plan.all_to_alls_without_broadcast) == (case.rules == "every_other")


@pytest.mark.parametrize("num_ranks", CASES)
def test_bytes_on_the_wire_are_those_of_the_arithmetic(ranks_of, num_ranks):
    for case, done in ranks_of(num_ranks)[0].items():
        (_, cfg, sp), tiny = case.mesh, TINY[case.name]
        request = case.request
        tokens = WORLDS[case.name].family.num_tokens(request.num_frames, request.height, request.width)
        text = tiny.text_tokens + (tiny.second_text or (0, 0))[0]
        texts = even_parts(text, sp) if tiny.text_is_split else (0,) * sp
        places = [mine + words for mine, words in zip(even_parts(tokens, sp), texts, strict=True)]
        heads, rows = even_parts(2, sp), 2 if tiny.both_rows_at_once and cfg == 1 and case.guidance_scale > 1 else 1
        # of this rank's tokens, the first one's, the others get their heads of queries, keys and values; back comes the rest
        there, back = sent_elements(places, heads, 0, 3 * rows), sent_elements(heads, places, 0, rows)
        assert done.traffic.all_to_all_bytes == done.computed["spatial"] * (there + back) * tiny.head_dim * 4
        assert done.traffic.gathers == done.passes * done.plan.num_steps
        most = largest_part(tokens, sp)
        assert done.traffic.gather_bytes == done.traffic.gathers * rows * most * tiny.token_channels * 4 * (sp - 1)


@pytest.mark.parametrize("name", PAIRS)
def test_broadcast_takes_its_share_off_the_wire_and_ranks_keep_their_own_tokens(one_rank, ranks_of, name):
    case = Case(name=name, mesh=FOUR)
    rank = ranks_of(4)[0]
    exact, broadcast = rank[Case(name=name, mesh=FOUR, rules="none")], rank[case]
    assert broadcast.plan.computed("spatial") * 2 == broadcast.plan.total("spatial")
    assert broadcast.traffic.all_to_all_bytes * 2 == exact.traffic.all_to_all_bytes > 0
    assert broadcast.traffic.gather_bytes == exact.traffic.gather_bytes
    whole = one_rank[case.alone].kept_bytes_peak
    assert whole / 4 <= broadcast.kept_bytes_peak < 1.2 * whole / 4
