import random

import torch

from pab.families.demo import captions
from pab.families.demo.captions import NAMED_ATTRIBUTES, write_caption
from pab.families.demo.scene import Scene, draw_scenes
from pab.families.demo.text import (
    PAD,
    ROWS_PER_BATCH,
    START,
    UNKNOWN,
    TextConfig,
    TextEncoder,
    Tokenizer,
)
from pab.families.demo.words import MAX_WORDS, build_vocabulary, count_words, count_words_of_loops, split_words


class CountsRows(TextEncoder):
    """An encoder that notes how many prompts each of its passes is given."""

    rows: tuple[int, ...] = ()

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        self.rows = (*self.rows, len(ids_BL))
        return super().forward(ids_BL)


TOKENIZER = Tokenizer(build_vocabulary(), 32)


def test_a_prompt_is_encoded_in_passes_of_one_size_however_many_prompts_there_are():
    """On a GPU a product of another size may be another kernel, which rounds otherwise."""
    encoder = CountsRows(TextConfig(), build_vocabulary()).eval()
    prompts = [f"a red circle moves {way}" for way in ("left", "right", "up", "down")] * 5
    many = encoder.encode(prompts)
    alone = encoder.encode(prompts[17:18])
    assert encoder.rows == (ROWS_PER_BATCH,) * 3
    assert many.y.shape[0] == len(many.mask) == 20
    assert torch.equal(many.y[17:18], alone.y)


def said(text: str, words_by_value: dict[str, tuple[str, ...]]) -> set[str]:
    """Returns the values that a text names; the longest phrase at a place counts."""
    found, rest = set(), f" {' '.join(split_words(text))} "
    phrases = sorted(((p, value) for value, ps in words_by_value.items() for p in ps), key=lambda pair: -len(pair[0]))
    for phrase, value in phrases:
        if f" {phrase} " in rest:
            found.add(value)
            rest = rest.replace(f" {phrase} ", "  ")
    return found


def directions() -> dict[str, tuple[str, ...]]:
    words = dict(captions.DIRECTION_WORDS)
    for direction in ("up", "down"):
        words[direction] += tuple(verb for forms in captions.MOVING_VERBS[direction] for verb in forms)
    words["still"] = (*(p for forms in captions.STILL_PHRASES for p in forms), "still", "motionless")
    return words


def spoken() -> dict[str, dict[str, tuple[str, ...]]]:
    return {
        "shape": captions.SHAPE_WORDS,
        "background": captions.BACKGROUND_WORDS,
        "colour": captions.COLOUR_WORDS,
        "direction": directions(),
        "size": captions.SIZE_WORDS,
        "speed": captions.SPEED_WORDS,
    }


def test_captions_tell_the_truth_and_nothing_but_what_they_claim_to_state():
    rng = random.Random(0)
    for scene in draw_scenes(1500, rng):
        caption = write_caption(scene, rng)
        for name, words in spoken().items():
            # "navy blue" is a background; it must not count as the colour blue
            text = caption.text.replace("navy blue", "navy")
            expected = {getattr(scene, name)} if name in caption.stated else set()
            assert said(text, words) == expected, (name, caption, scene)


def test_complete_captions_state_what_the_check_reads():
    rng = random.Random(1)
    for scene in draw_scenes(300, rng):
        assert write_caption(scene, rng, complete=True).stated >= {"shape", "colour", "background", "direction"}


def test_attributes_are_left_out_of_some_captions():
    rng = random.Random(2)
    stated = [write_caption(scene, rng).stated for scene in draw_scenes(400, rng)]
    assert all(0 < sum(name in names for names in stated) < 400 for name in NAMED_ATTRIBUTES)


def test_every_caption_word_is_in_the_vocabulary():
    rng = random.Random(3)
    for scene in draw_scenes(1000, rng):
        ids, warnings = TOKENIZER.ids(write_caption(scene, rng).text)
        assert warnings == ()
        assert UNKNOWN not in ids


def test_case_and_punctuation_do_not_count():
    assert TOKENIZER.ids("A small, RED circle!") == TOKENIZER.ids("a small red circle")
    ids, _ = TOKENIZER.ids("red")
    assert ids == [START, TOKENIZER.vocabulary.index("red")] + [PAD] * 30


def test_unknown_words_are_named_once_each():
    encoder = TextEncoder(TextConfig(channels=16, num_heads=2, num_layers=1), build_vocabulary())
    encoded = encoder.encode(["a red dragon and a dragon on mars", "a red circle"])
    assert encoded.warnings == (("the demo model does not know 'dragon'", "the demo model does not know 'mars'"), ())
    assert encoded.y.shape == (2, 1, 32, 16)
    assert encoded.mask.tolist() == [[1] * 32] * 2


def test_a_long_prompt_loses_its_unknown_words_first():
    ids, warnings = TOKENIZER.ids("a red circle " + "very " * 40 + "over navy")
    assert warnings == ("the demo model does not know 'very'",)
    assert ids == TOKENIZER.ids("a red circle over navy")[0]


def test_a_prompt_of_too_many_known_words_is_cut_and_told():
    whole, none = TOKENIZER.ids("a red circle " + "moving " * 28)
    ids, warnings = TOKENIZER.ids("a red circle " + "very moving " * 28 + "over navy")
    assert (ids, none) == (whole, ())
    assert warnings == (
        "the demo model does not know 'very'",
        "the prompt has 33 words that the demo model knows, the text encoder reads the first 31",
    )
    assert len(ids) == 32


def test_what_a_manifest_is_told_of_long_prompts_is_what_the_encoder_cuts():
    for words in (30, 31, 32):
        prompt = " ".join(["red"] * words) + " dragons"
        cut = any("reads the first 31" in warning for warning in TOKENIZER.ids(prompt)[1])
        assert cut == (count_words(prompt) > MAX_WORDS) == (words == 32)
    assert count_words_of_loops(f"|0| {'red ' * 20} |2| {'blue ' * 25}") == 25


def test_padding_does_not_change_what_words_mean():
    torch.manual_seed(0)
    encoder = TextEncoder(TextConfig(channels=16, num_heads=2, num_layers=2), build_vocabulary())
    batch = encoder.encode(["a red circle", "a small blue star moving left over sand"]).y
    alone = encoder.encode(["a red circle"]).y
    torch.testing.assert_close(batch[:1], alone)


def test_a_motionless_scene_has_no_speed_in_its_caption():
    scene = Scene(shape="ring", colour="red", background="teal", direction="still", size="small", speed="quick")
    rng = random.Random(4)
    assert not any("speed" in write_caption(scene, rng).stated for _ in range(50))
