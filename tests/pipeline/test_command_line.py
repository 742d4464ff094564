"""`--help`, `doctor`, `manifest`, and the commands that README promises."""

from __future__ import annotations

import compileall
import io
import platform
import re
import shlex
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.reports.number_formats import duration
from jobs.version import VERSION, digest_of
from pipeline.command_line import COMMANDS
from pipeline.commands.doctor_checks import byte_code_checks, disk_check, ffmpeg_check, python_check, weights_check
from pipeline.exits import UsageError, unusable_name
from pipeline.parser import build_parser
from pipeline.run.display import Snapshot
from pipeline.screen import Screen, counted, own_command
from tests.pipeline.command import ROOT, Command, environment


def test_help_of_every_command_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in [[], *([name] for name in COMMANDS), ["manifest", "validate"], ["manifest", "build"]]:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([*words, "--help"])
        assert ended.value.code == 0
        assert "3 some clips failed" in capsys.readouterr().out


def test_versions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--version"])
    assert ended.value.code == 0
    told = f"pab-pipeline {VERSION} (code {digest_of(ROOT)}) in {ROOT}, Python {platform.python_version()}\n"
    assert capsys.readouterr().out == told


def test_what_is_to_be_typed_is_told_as_the_program_was_called(monkeypatch: pytest.MonkeyPatch) -> None:
    for called, told in (
        ("/env/bin/pab-pipeline", "pab-pipeline"),
        ("/src/pipeline/__main__.py", "python -m pipeline"),
    ):
        monkeypatch.setattr(sys, "argv", [called, "status"])
        assert (own_command(), build_parser().prog) == (told, told)


@pytest.mark.parametrize("words", [["bench", "--list"], ["bench", "--list", "--json"]])
def test_a_full_disk_is_told_in_words(words: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "pipeline", *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env=environment(), check=False, timeout=60,
        )  # fmt: skip
    assert ran.returncode != 0
    assert "No space left on device; make room there" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_demo_is_a_submit_of_the_manifest_that_ships_on_this_machine(command: Command) -> None:
    code, document = command.json("demo", "--dry-run", "--device", "cpu", "--set", "num_steps=4")
    assert (code, document["num_clips"], document["to_render"]) == (0, 8, 8)
    assert document["output"] == str(command.folder / "runs/demo")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("submit a.parquet --ouput b", "'--ouput' is no flag of this command; --output is; see: python -m pipeline submit"),
        ("manifest build a.txt b.parquet --zzz=1", "'--zzz' is no flag of this command; see: "),
        ("status a b", "'b' is one word too many; see: python -m pipeline status --help"),
    ],
)  # fmt: skip
def test_a_word_that_no_command_knows_is_told_by_the_command(words: str, told: str) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        build_parser().parse_args(words.split())


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0"}


def in_ascii(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=folder, env=environment() | ASCII | variables, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["manifest validate", "submit --dry-run", "status", "report", "demo --output", "submit a --weights", "bench --output"],
)  # fmt: skip
def test_a_name_beyond_ascii_in_a_locale_of_ascii_is_refused_in_one_line(tmp_path: Path, words: str) -> None:
    ran = in_ascii(tmp_path, *words.split(), "Ordn\u00e9r/a")
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: 'Ordn\\xe9r/a': this locale has names in ascii, so only letters of ASCII are allowed; set PYTHONUTF8=1, or a "
        "locale of UTF-8 such as LC_ALL=C.UTF-8\n"
    )


def test_names_beyond_ascii_that_come_from_elsewhere_are_refused_too(tmp_path: Path) -> None:
    folder = tmp_path / "Ordn\u00e9r"
    folder.mkdir()
    (tmp_path / "a.csv").write_text(f"prompt,references\na red circle,{folder}/a.png\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("prompt\na circle \u00fcber na\u00efve\n", encoding="utf-8")
    for ran in (
        in_ascii(folder, "manifest", "validate", "../b.csv"),
        in_ascii(tmp_path, "manifest", "validate", "a.csv"),
        in_ascii(tmp_path, "manifest", "validate", "b.csv", PAB_PIPELINE_WEIGHTS=str(folder)),
    ):
        assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
        assert "Ordn\\xe9r': this locale has names in ascii" in ran.stderr
    (tmp_path / "c.toml").write_text("precision = 'float32' # \u00fc\n", encoding="utf-8")
    ran = in_ascii(tmp_path, "submit", "b.csv", "--dry-run", "--device", "cpu", "--config", "c.toml")
    assert (ran.returncode, "nothing was started" in ran.stdout) == (0, True), ran.stderr


def test_a_name_of_bytes_that_are_not_utf8_is_refused(tmp_path: Path) -> None:
    name = b"m\xe4n.csv"
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline", "manifest", "validate", name], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = "error: 'm\\udce4n.csv': these bytes are not UTF-8, which names must be; rename it\n"
    assert (ran.returncode, ran.stderr) == (2, told)


def test_only_names_that_system_and_stores_read_alike_are_taken() -> None:
    for name, encoding, taken in (
        ("a b.csv", "ascii", True),
        ("m\u00e4n", "utf-8", True),
        ("m\u00e4n", "UTF8", True),
        ("m\u00e4n", "iso8859-1", False),
        ("m\u00e4n", "ascii", False),
        ("m\udce4n", "utf-8", False),
    ):
        assert (unusable_name(name, encoding=encoding) is None) == taken, (name, encoding)


def test_a_result_of_letters_that_stdout_cannot_take_is_escaped() -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding="ascii", write_through=True)
    with redirect_stdout(stdout):
        Screen().result({}, "a circle \u00fcber a")
    assert written.getvalue() == b"a circle \\xfcber a\n"


def test_help_imports_nothing_heavy_and_answers_at_once() -> None:
    code = (
        "import sys, pipeline.__main__ as m\n"
        "try: m.main(['submit', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'dask', 'distributed', 'submitit', 'fsspec', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    began = time.process_time()
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert "--gpus-per-node" in ran.stdout
    assert time.process_time() - began < 0.3


def test_planning_and_looking_never_import_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(COMMANDS.values())}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


def test_doctor_says_where_each_job_would_compile_the_libraries_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages/torch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert list(byte_code_checks(package)) == [], "the first import keeps it"
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (check,) = byte_code_checks(package)
    assert check.verdict == "note"
    assert check.found == "none of torch, and PYTHONDONTWRITEBYTECODE is set"
    assert f"compileall -q {package.parent}" in check.mend
    compileall.compile_dir(package, quiet=1)
    assert list(byte_code_checks(package)) == [], "it is there"


def test_doctor_tells_what_it_finds_and_how_to_mend_it(command: Command, tmp_path: Path) -> None:
    code, document = command.json("doctor", "--weights", command.weights, "--output", tmp_path / "out")
    found = {check["name"]: check for check in document["checks"]}
    assert code == 0
    assert found["output"]["verdict"] == "ok"
    assert "exclusively" in found["output"]["found"]
    assert found["torch"]["verdict"] == "ok"
    assert document["versions"]["python"].startswith("3.1")
    ran = command.run("doctor", "--weights", f"demo={tmp_path / 'nothing'}", "--weights", f"wan={tmp_path}")
    assert "wan: weights='" in ran.stdout
    assert "has no transformer/, vae/" in ran.stdout
    assert "2 to mend" in ran.stdout
    ran = command.run("doctor", "--weights", tmp_path / "nothing")
    assert ran.returncode == 1
    assert "does not exist" in ran.stdout
    assert "1 to mend" in ran.stdout


def test_checks_say_ok_where_all_is_well(tmp_path: Path) -> None:
    assert [check.verdict for check in (python_check(), ffmpeg_check())] == ["ok", "ok"]
    assert "GiB free" in disk_check(tmp_path).found
    assert weights_check("sora", None).mend.startswith("allowed: demo")
    (tmp_path / "empty").mkdir()
    assert "has no transformer/, vae/, text_encoder/" in weights_check("wan", str(tmp_path / "empty")).found
    assert "(empty/ is empty)" in weights_check("wan", str(tmp_path / "empty")).found


def test_a_manifest_is_built_and_validated(command: Command) -> None:
    (command.folder / "prompts.txt").write_text("a red circle\na blue square\n")
    code, built = command.json("manifest", "build", "prompts.txt", "prompts.parquet")
    assert (code, built["num_clips"]) == (0, 2)
    words = ["manifest", "validate", "prompts.parquet", "--weights", str(command.weights)]
    code, validated = command.json(*words)
    assert (code, validated["num_clips"], validated["warnings"]) == (0, 2, [])
    other = command.json(*words, "--precision", "bfloat16")[1]
    assert other["digest"] != validated["digest"]
    weights = ["--weights", str(command.weights)]
    code, same = command.json("manifest", "validate", "prompts.txt", *weights)
    assert (code, same["digest"]) == (0, validated["digest"])
    (command.folder / "broken.parquet").write_text("a red circle\n")
    assert command.json("manifest", "validate", "broken.parquet", *weights)[0] == 4


def test_a_source_is_read_shaped_and_told_in_one_command(command: Command) -> None:
    (command.folder / "a.json").write_text(
        '{"items": [{"id": 7, "text_en": "a red circle", "cfg_scale": 5, "duration": 1}]}'
    )
    source = ["a.json", "--column", "prompt=text_en", "--column", "clip_id=id", "--map"]
    shaped = [
        "--seeds",
        "2",
        "--sweep",
        "num_steps=8,9",
        "--prompt-template",
        "{prompt} moving left",
        "--num-frames",
        "16",
    ]
    code, built = command.json(
        "manifest", "build", *source, *shaped, "--set", "height=64", "--model", "demo", "b.parquet"
    )
    assert (code, built["num_clips"], built["num_source_rows"]) == (0, 4, 1)
    rows = pq.read_table(command.folder / "b.parquet").to_pylist()
    assert [row["clip_id"] for row in rows] == [f"7-num_steps{steps}-seed{seed}" for steps in (8, 9) for seed in (0, 1)]
    told = {name: rows[0][name] for name in ("prompt", "num_frames", "height", "model", "guidance_scale", "seed")}
    assert told == {
        "prompt": "a red circle moving left", "num_frames": 8, "height": 64, "model": "demo", "guidance_scale": 5.0,
        "seed": 0,
    }  # fmt: skip
    ran = command.run("manifest", "build", *source, "b.parquet")
    assert (ran.returncode, "the file exists; name another file, or replace it with --force" in ran.stderr) == (4, True)
    assert command.run("manifest", "build", *source, "--model", "demo", "b.parquet", "--force").returncode == 0
    ran = command.run("manifest", "build", "a.json", "c.parquet", "--sweep", "height=a,b")
    assert (ran.returncode, "height='a', an integer within int64 is needed" in ran.stderr) == (2, True)


def test_the_light_commands_of_the_readme_run_as_they_stand(command: Command) -> None:
    """All but `make`, `doctor`, and the ones after the submit that renders at full length, which `make demo` does."""
    _, block = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    light, heavy, _ = block.partition(".venv/bin/python -m pipeline submit prompts.parquet --cluster local\n")
    assert heavy
    ran = subprocess.run(
        ["bash", "-euc", light.replace(".venv/bin/python", shlex.quote(sys.executable))],
        cwd=command.folder,
        env={**environment(), "PAB_PIPELINE_WEIGHTS": str(command.weights)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "2 clips, no problem" in ran.stdout
    assert "nothing was started or written" in ran.stdout


def test_every_command_of_the_readme_is_one_that_the_parser_knows() -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh[^\n]*\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "-m pipeline" in line]
    assert len(lines) >= 9
    for line in lines:
        words = shlex.split(line.partition("-m pipeline")[2])
        assert build_parser().parse_args(words).command == words[0]


def test_progress_tells_rate_and_time_to_go() -> None:
    planned = Snapshot(num_clips=10, rendered=0, failed=0, started=1, new=0, elapsed_s=10, planned_s=100)
    assert planned.eta_s == 90
    measured = Snapshot(num_clips=10, rendered=4, failed=1, started=1, new=2, elapsed_s=60, planned_s=100)
    assert measured.clips_per_hour == 120
    assert measured.eta_s == 150
    assert measured.text() == "4 of 10 clips, 1 failed, 1 running, 120 clips per hour, 2 min 30 s to go"


def test_units_are_written_as_people_read_them() -> None:
    assert [duration(s) for s in (0, 42.4, 185, 7620, 356400)] == ["0 s", "42 s", "3 min 5 s", "2 h 7 min", "4 d 3 h"]
    assert [counted(n, "clip") for n in (0, 1, 1000)] == ["0 clips", "1 clip", "1,000 clips"]
