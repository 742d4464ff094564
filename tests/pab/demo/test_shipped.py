from pab.families.demo.config import WEIGHTS
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.training.read_back import read_scenes
from pab.families.demo.training.sample import SampleSettings, render_prompts
from pab.families.demo.weights import load_demo

ASKED = (
    ("star", "yellow", "navy", "left"),
    ("circle", "red", "black", "right"),
    ("ring", "pink", "teal", "up"),
    ("square", "blue", "sand", "down"),
)


def test_the_shipped_weights_fit_into_sixteen_megabytes():
    assert WEIGHTS.stat().st_size <= 16e6


def test_the_shipped_model_draws_what_it_is_asked_for_and_moves_it_as_asked():
    """A look at four prompts; `python -m pab.families.demo.training.check` counts 64."""
    prompts = [
        f"a medium {colour} {shape} moving {direction} on a {background} background"
        for shape, colour, background, direction in ASKED
    ]
    settings = SampleSettings(size=ClipSize(num_frames=8, height=64, width=64), num_steps=12)
    clips = render_prompts(load_demo(), prompts, seed=1, settings=settings)
    read = [(scene.shape, scene.colour, scene.background, scene.direction) for scene in read_scenes(clips)]
    assert read == list(ASKED)
