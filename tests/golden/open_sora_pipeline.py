"""What the published pipeline does around the model: prompts, sizes and lengths, frames given by references."""

import pytest

from pab.conditioning.loops import split_scenes
from pab.families.open_sora.prompts import Scores, with_scores
from pab.families.open_sora.sizes import ASPECT_RATIOS, FRAMES_PER_2S, LENGTHS, SIZES, image_size
from pab.text.prompt_cleaning import clean
from tests.golden.cases import Case
from tests.golden.frame_masks import frame_mask


def check(case: Case) -> None:
    checks = {"text": check_text, "sizes": check_sizes, "mask_strategy": check_masks}
    if case.path.stem not in checks:
        pytest.fail(f"{case.name}: not a kind of pipeline case that is known")
    checks[case.path.stem](case.facts)


def check_text(facts: dict) -> None:
    for row in facts["cleaned"]:
        assert clean(row["text"]) == row["cleaned"], row["text"]
    for row in facts["with_scores"]:
        args = row["args"]
        scores = Scores(aesthetic=args["aes"], motion=args["flow"], camera_motion=args["camera_motion"])
        assert with_scores(row["text"], scores) == row["out"]
    for row in facts["split"]:
        assert list(split_scenes(row["text"])) == row["out"]


def check_sizes(facts: dict) -> None:
    assert {name: facts["num_frames"][name] for name in LENGTHS} == LENGTHS
    assert all(
        frames == int(name[:-1]) * FRAMES_PER_2S for name, frames in facts["num_frames"].items() if name[-1] == "x"
    )
    stated = facts["image_size_h_w"]
    assert set(SIZES) == set(stated)
    for resolution, sizes in stated.items():
        assert set(sizes) == set(ASPECT_RATIOS)
        for aspect_ratio, size in sizes.items():
            assert list(image_size(resolution, aspect_ratio)) == size


def check_masks(facts: dict) -> None:
    for row in facts["cases"]:
        mask = frame_mask(row["ms"], row["refs"], row["z"], loop=row["loop"], align=row["align"])
        assert list(mask.levels) == pytest.approx(row["mask"], abs=1e-7)
        assert [source and list(source) for source in mask.sources] == row["ref_frame_copied"]
        assert [i for i, source in enumerate(mask.sources) if source] == row["frames_changed"]
