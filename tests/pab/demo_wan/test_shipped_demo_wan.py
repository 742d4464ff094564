from pab.families.demo.training.check import main as check_demo
from pab.families.demo.training.generator import ClipSize
from pab.families.demo.training.read_back import read_scenes
from pab.families.demo.weights import load_demo
from pab.families.demo_wan.training.check import main
from pab.families.demo_wan.training.sample import SampledParts, SampleSettings, render_prompts
from pab.families.demo_wan.transformer import load_transformer
from pab.families.demo_wan.weights import WEIGHTS

ASKED = (("star", "yellow", "navy", "left"), ("ring", "pink", "teal", "up"))


def test_the_shipped_weights_fit_into_sixteen_megabytes():
    assert WEIGHTS.stat().st_size <= 16e6


def test_the_shipped_model_draws_what_it_is_asked_for_and_moves_it_as_asked():
    """A look at two prompts; `python -m pab.families.demo_wan.training.check` counts 64."""
    demo = load_demo()
    parts = SampledParts(
        transformer=load_transformer(WEIGHTS), text_encoder=demo.text_encoder, autoencoder=demo.autoencoder
    )
    prompts = [
        f"a medium {colour} {shape} moving {direction} on a {background} background"
        for shape, colour, background, direction in ASKED
    ]
    settings = SampleSettings(size=ClipSize(num_frames=8, height=64, width=64), num_steps=6)
    clips = render_prompts(parts, prompts, seed=1, settings=settings)
    read = [(scene.shape, scene.colour, scene.background, scene.direction) for scene in read_scenes(clips)]
    assert read == list(ASKED)


def test_the_check_says_by_its_exit_code_whether_a_model_follows(capsys):
    for check in (main, check_demo):
        few = ["--prompts", "1", "--steps", "1"]
        assert [check([*few, "--least", least]) for least in ("0", "1.1")] == [0, 1]
        assert "direction" in capsys.readouterr().out
