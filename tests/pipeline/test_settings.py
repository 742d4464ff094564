"""Where a setting comes from, what is refused, and what the tree makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.render_settings import CompileChoice
from jobs.settings import Mesh
from pab.families import FAMILIES
from pipeline.exits import UsageError
from pipeline.parser import build_parser
from pipeline.run.build import auto_device, build_settings
from pipeline.run.environment import environment_settings
from pipeline.run.libraries import check_torch
from pipeline.run.machines import LOOPBACK, driver_host
from pipeline.run.options import OPTIONS, Chosen, choose
from pipeline.run.rules import run_rules
from pipeline.run.run import Run, as_begun, asked_run, begun_notes, load_run, open_bucket, pixel_settings, start_run
from pipeline.run.settings import parse_mesh
from tests.cluster.torch_build import write_torch


def settings_of(*flags: str, environment: dict[str, str] | None = None, config: Path | None = None):
    parsed = vars(build_parser().parse_args(["submit", "videos/prompts.parquet", *flags]))
    return build_settings("videos/prompts.parquet", choose(parsed, environment_settings(environment or {}), config))


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('job_minutes = 7\nprecision = "bfloat16"\nbaseline = false\n')
    local = ("--cluster", "local", "--device", "cpu")
    assert settings_of(*local).machines.job_minutes == 60
    assert settings_of(*local, config=config).machines.job_minutes == 7
    environment = {"PAB_PIPELINE_JOB_MINUTES": "8", "HOME": "/root"}
    assert settings_of(*local, environment=environment, config=config).machines.job_minutes == 8
    flag = settings_of(*local, "--job-minutes", "9", environment=environment, config=config)
    assert (flag.machines.job_minutes, flag.render.precision, flag.render.baseline) == (9, "bfloat16", False)


def test_an_output_that_no_job_can_see_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--output=memory://x: memory:// is this process's own, so jobs .* name a folder"
    ):
        settings_of("--cluster", "local", "--output", "memory://x")
    with pytest.raises(UsageError, match="PAB_PIPELINE_OUTPUT=memory://x: "):
        settings_of("--cluster", "local", environment={"PAB_PIPELINE_OUTPUT": "memory://x"})


def test_weights_are_given_by_family_in_flags_and_files(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    config = tmp_path / "run.toml"
    config.write_text('weights = {wan = "some/model", latte = "other/model"}\n')
    local = ("--cluster", "local", "--device", "cpu")
    for flags, file, plain, named in (
        ((), None, None, {}),
        ((), config, None, {"wan": "some/model", "latte": "other/model"}),
        (("--weights", "mine", "--weights", f"wan={tmp_path}"), config, "mine", {"wan": str(tmp_path)}),
        (("--weights", str(tmp_path / "a=b")), None, str(tmp_path / "a=b"), {}),
    ):
        render = settings_of(*local, *flags, config=file).render
        assert (render.weights, render.family_weights) == (plain, named)
        assert render.weights_of("demo") == plain
    for given, told in (
        (("sora=x",), "--weights='sora=x', needs FAMILY=DIR_OR_HUB_ID of a family: demo"),
        (("wan=",), "--weights='wan=', needs FAMILY"),
        (("wan=a", "wan=b"), "--weights='wan=b', wan has 'a' already"),
        (("a", "demo=b"), "--weights: a, demo=b are all for --model demo"),
    ):
        with pytest.raises(UsageError, match=told):
            settings_of(*local, *(word for text in given for word in ("--weights", text)))


def test_every_setting_is_a_flag_a_variable_and_a_key() -> None:
    text = build_parser().parse_args(["submit", "m.parquet"])
    assert {option.name for option in OPTIONS} <= set(vars(text))
    assert all(getattr(text, option.name) is None for option in OPTIONS)


@pytest.mark.parametrize(
    ("flags", "environment", "file", "told"),
    [
        (
            (),
            {"PAB_PIPELINE_JOBMINUTES": "3"},
            "",
            r"PAB_PIPELINE_JOBMINUTES is set and is no setting, allowed: .*JOB_MINUTES",
        ),
        (
            (),
            {"PAB_PIPELINE_JOB_MINUTES": "soon"},
            "",
            r"PAB_PIPELINE_JOB_MINUTES='soon', needs a whole number of 1 or more",
        ),
        ((), {"PAB_PIPELINE_DASK": "perhaps"}, "", r"PAB_PIPELINE_DASK='perhaps', allowed: 1, true"),
        ((), {}, "gpu = 3", r"run.toml: 'gpu' is no setting, allowed: .*gpus_per_node"),
        ((), {}, "gpus_per_node = 0", r"run.toml: gpus_per_node=0, needs a whole number of 1 or more"),
        ((), {}, "gpus_per_node =", r"run.toml: Invalid value"),
        (("--gpus-per-node", "x"), {}, "", r"--gpus-per-node='x', needs a whole number"),
        (("--slurm", "mem="), {}, "", r"--slurm: 'mem=' is not KEY=VALUE"),
        (("--cluster", "local", "--qos", "high"), {}, "", r"--qos is SLURM's and the jobs run on this machine"),
        (("--mesh", "sp=4"), {}, "", r"--mesh=sp=4 uses 4 ranks, a job has 1 .*change one of them"),
        (("--batch", "0"), {}, "", r"--batch='0', needs auto or a number of clips from 1 to 8"),
        (("--batch", "9"), {}, "", r"--batch='9', needs auto or a number"),
        (
            ("--batch", "2", "--model", "wan"),
            {},
            "",
            r"--batch=2: family wan renders one clip at a time, demo, .*say auto or 1",
        ),
        (("--crf", "52"), {}, "", r"--crf='52', needs a whole number from 0 to 51"),
        ((), {}, "crf = -1", r"run.toml: crf=-1, needs a whole number from 0 to 51"),
        ((), {}, "crf = 1.5", r"run.toml: crf=1.5, needs a whole number from 0 to 51"),
        (
            (),
            {"PAB_PIPELINE_MAX_ATTEMPTS": "0"},
            "",
            r"PAB_PIPELINE_MAX_ATTEMPTS='0', needs a whole number of 1 or more",
        ),
        (("--gpu-memory", "much"), {}, "", r"--gpu-memory='much', needs a whole number of 1 or more"),
        (("--mesh", "sp=0"), {}, "", r"--mesh='sp=0': 'sp=0', needs auto, latency, or each of dp, cfg, sp"),
    ],
)
def test_a_wrong_setting_is_refused_by_the_name_of_its_place(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], file: str, told: str
) -> None:
    config = tmp_path / "run.toml"
    config.write_text(file)
    with pytest.raises(UsageError, match=told):
        settings_of(*flags, environment=environment, config=config)


def test_no_dask_is_the_opposite_of_dask() -> None:
    assert settings_of("--cluster", "local").dask
    assert not settings_of("--cluster", "local", "--no-dask").dask
    assert not settings_of("--cluster", "local", environment={"PAB_PIPELINE_DASK": "0"}).dask


def test_slurm_takes_pairs_and_bare_options() -> None:
    flags = ("--cluster", "slurm", "--slurm", "constraint=a100", "exclusive", "--slurm", "mem=64G")
    assert settings_of(*flags).machines.slurm == {"constraint": "a100", "exclusive": True, "mem": "64G"}
    environment = {"PAB_PIPELINE_SLURM": "mem=1G exclusive"}
    assert settings_of("--cluster", "slurm", environment=environment).machines.slurm == {"mem": "1G", "exclusive": True}


def test_precision_follows_the_device_and_the_family() -> None:
    def precisions(*flags: str) -> list[str]:
        render = settings_of("--cluster", "local", *flags).render
        return [render.precision_of(FAMILIES[name]) for name in ("wan", "demo")]

    assert precisions("--device", "cpu") == ["float32", "float32"]
    assert precisions("--device", "cuda") == ["bfloat16", "float32"], "the demo looks as on a CPU"
    assert precisions("--device", "cuda", "--precision", "bfloat16") == ["bfloat16", "bfloat16"]
    assert {family.gpu_precision for name, family in FAMILIES.items() if not name.startswith("demo")} == {"bfloat16"}
    assert settings_of("--cluster", "slurm").render.device == "cuda"


def test_a_torch_that_is_built_without_cuda_renders_on_the_cpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch(tmp_path / "a", cuda="'13.0'")
    write_torch(tmp_path / "b")
    auto, flag = Chosen(value="auto", source="default"), Chosen(value="cuda", source="--device")
    monkeypatch.syspath_prepend(tmp_path / "a")
    assert [auto_device("local", gpu_here=gpu) for gpu in (True, False)] == ["cuda", "cpu"]
    assert check_torch("cuda", auto, here=True, gpu_here=True) == []
    assert check_torch("cuda", flag, here=True, gpu_here=False) == [], "the job says why"
    monkeypatch.syspath_prepend(tmp_path / "b")
    assert [auto_device(cluster, gpu_here=True) for cluster in ("local", "slurm")] == ["cpu", "cuda"]
    (warning,) = check_torch("cpu", auto, here=True, gpu_here=True)
    assert warning == (
        "torch 2.13.0+any cannot use the GPU of this machine, clips are rendered on the CPU: it is built without CUDA; "
        "install one that is built with it, or say --device cpu"
    )
    assert check_torch("cpu", auto, here=True, gpu_here=False) == []
    assert check_torch("cpu", Chosen(value="cpu", source="--device"), here=True, gpu_here=True) == []
    with pytest.raises(UsageError, match=r"torch 2.13.0\+any finds no GPU here: it is built without CUDA; install one"):
        check_torch("cuda", flag, here=True, gpu_here=True)
    assert check_torch("cuda", auto, here=False, gpu_here=False) == [
        "torch 2.13.0+any of this Python is built without CUDA, and jobs are to use GPUs, unless theirs is another"
    ]


def test_output_defaults_to_the_manifest_name_and_is_found_from_any_folder() -> None:
    assert settings_of("--cluster", "local").output == str(Path.cwd() / "runs/prompts")
    assert settings_of("--cluster", "local", "--output", "s3://bucket/run").output == "s3://bucket/run"


def test_dask_listens_on_loopback_for_local_jobs_and_where_the_user_says() -> None:
    assert driver_host(settings_of("--cluster", "local").machines) == LOOPBACK
    assert driver_host(settings_of("--cluster", "slurm", "--dashboard-host", "10.0.0.7").machines) == "10.0.0.7"


def test_mesh_refuses_a_third_guidance_branch() -> None:
    with pytest.raises(UsageError, match=r"cfg=3, allowed 1 or 2"):
        parse_mesh("cfg=3")


@pytest.mark.parametrize(
    ("flags", "compiled"),
    [
        (("--device", "cpu"), False),
        (("--device", "cuda"), True),
        (("--device", "cuda", "--compile", "off"), False),
        (("--device", "cpu", "--compile", "on"), True),
    ],
)
def test_blocks_are_compiled_on_gpus_unless_told_otherwise(flags: tuple[str, ...], compiled: bool) -> None:
    settings = settings_of("--cluster", "local", *flags)
    assert settings.render.compile is compiled
    job = settings.job_settings(run_id="r", mesh=Mesh(), broadcast_rules=None, pinned_weights={})
    assert (job.render.compile, job.render.attention, job.render.keep, job.render.compile_cache) == (
        compiled,
        "auto",
        "auto",
        None,
    )
    assert job.render.execution(FAMILIES["demo"]).keep == "full"


def test_how_outputs_wait_to_be_reused_travels_into_jobs() -> None:
    settings = settings_of("--cluster", "local", "--keep", "int8")
    job = settings.job_settings(run_id="r", mesh=Mesh(), broadcast_rules=None, pinned_weights={})
    assert (settings.render.keep, job.render.keep) == ("int8", "int8")


def test_quality_and_attempts_travel_into_jobs() -> None:
    settings = settings_of("--cluster", "local", "--crf", "0", "--max-attempts", "4")
    job = settings.job_settings(run_id="r", mesh=Mesh(), broadcast_rules=None, pinned_weights={})
    assert (job.render.crf, job.render.max_attempts) == (0, 4)
    plain = settings_of("--cluster", "local").render
    assert (plain.crf, plain.max_attempts, plain.batch) == (18, 2, 0)


def test_what_cannot_be_compiled_or_has_no_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.setitem(FAMILIES, "wan", replace(FAMILIES["wan"], compiles=False))
    with pytest.raises(UsageError, match=r"--compile=on: the blocks of family wan cannot be compiled, those of demo, "):
        settings_of("--cluster", "local", "--model", "wan", "--compile", "on")
    with pytest.raises(UsageError, match=r"--attention=cudnn needs a GPU and --device is cpu; allowed: auto, default"):
        settings_of("--cluster", "local", "--device", "cpu", "--attention", "cudnn")


AUTO = {"compile": "auto", "decode": "auto"}


def begun_with(**pixels: str) -> Run:
    named = {f"--{name}": value for name, value in pixels.items()}
    return Run(run_id="0" * 12, manifest_digest="m", num_clips=1, pixels=named, weights={})


def test_a_run_that_began_with_eager_blocks_goes_on_with_them_unless_asked_otherwise() -> None:
    settings = settings_of("--cluster", "local", "--device", "cuda", "--model", "wan")
    assert settings.render.compile
    assert not as_begun(settings, begun_with(compile="off", decode="fast"), asked=AUTO).render.compile
    assert not as_begun(settings, begun_with(), asked=AUTO).render.compile, "of before it could be chosen"
    on = {"compile": "on", "decode": "fast"}
    assert as_begun(settings, begun_with(compile="off"), asked=on) == settings, "then submit says what differs"
    assert as_begun(settings, begun_with(compile="on", decode="fast"), asked=AUTO) == settings
    assert as_begun(settings, None, asked=AUTO) == settings


def test_a_run_that_weighed_compiling_goes_on_with_what_came_out() -> None:
    settings = settings_of("--cluster", "local", "--device", "cuda", "--model", "wan")
    eager = {"wan": CompileChoice(compiled=False, why="few clips")}
    new = as_begun(settings, None, asked=AUTO, weighed=eager).render
    assert (new.execution(FAMILIES["wan"]).compiled, new.execution(FAMILIES["wan_14b"]).compiled) == (False, True)
    found = replace(begun_with(compile="off", decode="fast"), weighed=eager)
    assert as_begun(settings, found, asked=AUTO).render == new, "other families stay as they were, too"
    on = as_begun(settings, found, asked=AUTO | {"compile": "on"}).render
    assert on.execution(FAMILIES["wan"]).compiled, "then submit says what differs"


def test_a_run_of_before_goes_on_in_the_precision_it_began_with_and_says_so() -> None:
    settings = settings_of("--cluster", "local", "--device", "cuda")
    found = begun_with(precision="bfloat16", compile="on")
    begun = as_begun(settings, found, asked=AUTO)
    assert begun.render.precision_of(FAMILIES["demo"]) == "bfloat16"
    rules = run_rules(begun.render)
    (note,) = begun_notes(begun, rules, [])
    assert note.startswith("this run began in bfloat16 and goes on so; a new run of demo on a GPU is in float32")
    assert pixel_settings(begun, rules)["--precision"] == "bfloat16"
    assert begun_notes(begun, rules, ["precision"]) == []
    mixed = Run(
        run_id="0" * 12, manifest_digest="m", num_clips=1, weights={},
        pixels={"--precision": "bfloat16", "precision of demo": "float32"},
    )  # fmt: skip
    for other in (begun_with(precision="float32", compile="on"), mixed):
        assert as_begun(settings, other, asked=AUTO).render.precision == "auto"
    new = settings.render
    assert "precision float32" in run_rules(new).rows["demo"].identity()


def test_a_run_of_before_goes_on_with_its_default_broadcast_and_says_so(tmp_path: Path) -> None:
    bucket, settings = open_bucket(str(tmp_path)), settings_of("--cluster", "local", "--device", "cpu")
    rules = run_rules(settings.render)
    start_run(bucket, asked_run(settings, rules, manifest_digest="m", num_clips=1), settings)
    assert load_run(bucket).broadcasts == {"demo": "half"}
    document = json.loads((tmp_path / "run.json").read_text())
    del document["broadcasts"]
    document["pixels"]["--broadcast"] = "pab246 (0123456789ab)"
    (tmp_path / "run.json").write_text(json.dumps(document))
    found = load_run(bucket)
    assert found.broadcasts == {"demo": "pab246"}
    begun = run_rules(settings.render, defaults=found.broadcasts)
    assert begun.rows["demo"].defaults["broadcast"] == "pab246"
    (note,) = begun_notes(settings, begun, [])
    assert note.startswith("rows of demo that name no broadcast got pab246 when this run began, and go on with it;")
    document["settings"]["render"]["broadcast"] = "pab246"
    (tmp_path / "run.json").write_text(json.dumps(document))
    assert load_run(bucket).broadcasts == {}, "the user chose it"


def test_a_run_whose_videos_were_decoded_as_published_goes_on_so() -> None:
    settings = settings_of("--cluster", "local", "--device", "cuda", "--model", "wan")
    assert settings.render.decode == "fast"
    assert settings_of("--cluster", "local", "--device", "cpu", "--model", "wan").render.decode == "published"
    assert as_begun(settings, begun_with(compile="on"), asked=AUTO).render.decode == "published", "from before"
    assert as_begun(settings, begun_with(compile="on"), asked=AUTO | {"decode": "fast"}) == settings
