"""The published pipeline's steps around the model: prompts, sizes and lengths, frames given by references."""

import pytest

from pab.conditioning.loops import split_scenes
from pab.families.open_sora.prompts import Scores, with_scores
from pab.families.open_sora.sizes import ASPECT_RATIOS, FRAMES_PER_2S, IMAGE_FPS, LENGTHS, SIZES, image_size
from pab.text.prompt_cleaning import clean
from tests.golden.cases import Case, only, same
from tests.golden.frame_masks import frame_mask

MASK_ROW = frozenset({"z", "refs", "ms", "loop", "align", "mask", "frames_changed", "ref_frame_copied"})


def check_text(case: Case) -> None:
    facts = case.facts
    for row in facts["cleaned"]:
        only(row, {"text", "cleaned"}, "cleaned")
        same(clean(row["text"]), row["cleaned"], row["text"])
    for row in facts["with_scores"]:
        only(row, {"text", "args", "out"}, "with_scores")
        args = row["args"]
        only(args, {"aes", "flow", "camera_motion"}, "with_scores")
        scores = Scores(aesthetic=args["aes"], motion=args["flow"], camera_motion=args["camera_motion"])
        same(with_scores(row["text"], scores), row["out"], row["text"])
    for row in facts["split"]:
        only(row, {"text", "out"}, "split")
        same(list(split_scenes(row["text"])), row["out"], row["text"])


def check_sizes(case: Case) -> None:
    facts = case.facts
    for name, frames in facts["num_frames"].items():
        known = int(name[:-1]) * FRAMES_PER_2S if name.endswith("x") else LENGTHS.get(name)
        same(known, frames, f"frames of {name}")
    assert set(LENGTHS) <= set(facts["num_frames"])
    assert str(IMAGE_FPS) in facts["fps"]
    stated = facts["image_size_h_w"]
    assert set(SIZES) == set(stated)
    for resolution, sizes in stated.items():
        assert set(sizes) == set(ASPECT_RATIOS)
        for aspect_ratio, size in sizes.items():
            same(list(image_size(resolution, aspect_ratio)), size, f"{resolution} {aspect_ratio}")


def check_masks(case: Case) -> None:
    for row in case.facts["cases"]:
        only(row, MASK_ROW, row["ms"])
        mask = frame_mask(row["ms"], row["refs"], row["z"], loop=row["loop"], align=row["align"])
        assert list(mask.levels) == pytest.approx(row["mask"], abs=1e-7), row["ms"]
        same([source and list(source) for source in mask.sources], row["ref_frame_copied"], row["ms"])
        same([i for i, source in enumerate(mask.sources) if source], row["frames_changed"], row["ms"])
