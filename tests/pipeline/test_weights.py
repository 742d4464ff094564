"""Weights on the hub: asked for only when a row names the family, and one commit from the first submit to the last."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from jobs.store.bucket import Bucket
from manifests.accept import validate
from pab.families import FAMILIES
from pab.families.demo.family import DEMO
from pab.families.tiny_weights import write_tiny_weights
from pab.weights.digest import weights_digest
from pipeline.exits import UsageError
from pipeline.run.build import build_settings
from pipeline.run.options import choose
from pipeline.run.rules import RunRules, run_rules
from pipeline.run.run import Run, asked_run, find_run, start_run
from pipeline.run.settings import RunSettings
from pipeline.run.weights import NOT_LOOKED_AT, RunWeights, WeightsLookup
from tests.pipeline.command import ROOT, Command

Manifest = Callable[..., Path]
FIRST, SECOND = "1" * 40, "2" * 40


@dataclass(slots=True, kw_only=True)
class Hub:
    """What a branch stands at, and which repositories were asked for."""

    commit: str = FIRST
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, models, path = self.path.partition("/api/models/")
            if not models:  # the client also asks for things of its own
                self.send_error(404)
                return
            name = path.split("/revision/")[0]
            hub.asked.append(name)
            body = json.dumps({"id": name, "sha": hub.commit, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback, for the processes that a test starts."""
    found = Hub()
    with serve(found) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield found


def test_the_hub_is_asked_once_for_each_repository_of_the_families_that_rows_name(
    cold_command: Command, manifest: Manifest, hub: Hub
) -> None:
    # In processes: the hub's library reads its address when it is imported.
    code, document = cold_command.json("manifest", "validate", manifest())
    assert (code, list(document["families"]), hub.asked) == (0, ["demo"], [])
    sizes = {"num_frames": [8, 16, 16], "height": [32, 512, 512], "width": [32, 512, 512], "num_steps": [4, 50, 50]}
    named = manifest(name="named", model=["demo", "latte", "latte"], **sizes)
    code, document = cold_command.json("manifest", "validate", named)
    assert (code, hub.asked, document["families"]["latte"], document["digest"]) == (0, [], NOT_LOOKED_AT, None)
    script = (
        "from pipeline.run.build import build_settings; from pipeline.run.options import choose\n"
        "from pipeline.run.rules import run_rules; from manifests.accept import validate\n"
        "rules = run_rules(build_settings('m.parquet', choose({'cluster': 'local', 'device': 'cpu'}, {})).render)\n"
        f"validate({str(named)!r}, rules.rows, default_model='demo')\n"
        "print(rules.weights['latte'].pinned)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (ran.stdout.strip(), hub.asked) == (f"maxin-cn/Latte-1@{FIRST}", ["maxin-cn/Latte-1"])


def test_checking_and_planning_need_no_hub_and_rendering_says_what_it_does_not_reach(
    cold_command: Command, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    sizes = {"num_frames": [8, 81, 8], "height": [32, 480, 32], "width": [32, 832, 32], "num_steps": [4, 50, 4]}
    url = manifest(model=["demo", "wan", None], **sizes)
    assert cold_command.json("manifest", "validate", url)[0] == 0
    output = ["--output", str(cold_command.folder / "none"), "--cluster", "local"]
    code, planned = cold_command.json("submit", url, *output, "--dry-run")
    assert (code, planned["to_render"]) == (0, 3)
    code, document = cold_command.json("submit", url, *output)
    assert code == 4
    assert not (cold_command.folder / "none").exists()
    assert "row 1: model='wan', it cannot be used: weights='Wan-AI/" in document["error"]["message"]
    assert "cannot be fetched" in document["error"]["message"]


def test_every_family_of_the_hub_pins_its_weights() -> None:
    for family in FAMILIES.values():
        if family.name not in ("demo", "demo_wan"):  # these ship with the project
            with pytest.raises(ValueError, match="neither a folder on this machine nor a hub id"):
                family.pin("nowhere")


def settings_of(url: Path, output: Path, **flags: str) -> RunSettings:
    given = {"cluster": "local", "device": "cpu", "output": str(output), **flags}
    return build_settings(str(url), choose(given, {}))


def submitted(url: Path, output: Path, hub: Hub, *, keep: bool = True, **flags: str) -> tuple[Run, RunRules]:
    """Takes a manifest into a run as `submit` does, with a second family of the hub."""
    other = replace(
        DEMO,
        name="other",
        pin=lambda weights: weights or f"some/model@{hub.commit}",
        weights_digest=lambda weights: str(weights)[-16:],
    )
    bucket, settings = Bucket(str(output)), settings_of(url, output, **flags)
    found = find_run(bucket)
    rules = run_rules(settings.render, {"demo": DEMO, "other": other}, begun=found.weights if found and keep else None)
    accepted = validate(str(url), rules.rows, default_model="demo")
    asked = asked_run(settings, rules, manifest_digest=accepted.digest, num_clips=accepted.num_rows)
    return start_run(bucket, asked, settings)[0], rules


def test_a_run_that_began_before_quality_was_a_setting_goes_on(manifest: Manifest, tmp_path: Path) -> None:
    hub, output = Hub(), tmp_path / "out"
    url = manifest(model=["demo", "other", "other"])
    run, _ = submitted(url, output, hub)
    document = json.loads((output / "run.json").read_text())
    assert document["pixels"].pop("--crf") == "18"
    for name in ("crf", "batch", "max_attempts"):
        del document["settings"]["render"][name]
    document["settings"]["machines"]["batch"] = 0
    (output / "run.json").write_text(json.dumps(document))
    assert submitted(url, output, hub)[0].run_id == run.run_id
    with pytest.raises(UsageError, match="--crf was 18, now 30"):
        submitted(url, output, hub, crf="30")


def test_a_run_goes_on_with_the_commit_it_began_with_when_the_branch_has_moved(
    manifest: Manifest, tmp_path: Path
) -> None:
    hub, output = Hub(), tmp_path / "out"
    url = manifest(model=["demo", "other", "other"])
    run, rules = submitted(url, output, hub)
    assert rules.pinned_weights() == {"other": f"some/model@{FIRST}"}
    assert json.loads((output / "run.json").read_text())["weights"]["other"]["pinned"] == f"some/model@{FIRST}"
    hub.commit = SECOND
    again, rules = submitted(url, output, hub)
    assert (again.run_id, rules.pinned_weights()) == (run.run_id, {"other": f"some/model@{FIRST}"})
    told = rf"weights of other was .*some/model@{FIRST}\), now .*some/model@{SECOND}"
    with pytest.raises(UsageError, match=told):
        submitted(url, output, hub, keep=False)
    assert submitted(url, tmp_path / "new", hub)[1].pinned_weights() == {"other": f"some/model@{SECOND}"}


def tiny_wan(folder: Path) -> Path:
    write_tiny_weights("wan", folder)
    return folder


def test_a_run_that_named_its_weights_by_all_files_of_the_folder_goes_on(tmp_path: Path) -> None:
    folder, wan = str(tiny_wan(tmp_path / "wan")), FAMILIES["wan"]
    (tmp_path / "wan" / "README.md").write_text("a version before hashed this too")
    began = RunWeights(asked=folder, pinned=folder, digest=weights_digest(tmp_path / "wan"))
    assert WeightsLookup(lambda _: folder, {}).find(wan).digest == wan.weights_digest(folder) != began.digest
    assert WeightsLookup(lambda _: folder, {"wan": began}).find(wan) == began
    (tmp_path / "wan" / "README.md").write_text("and that it has changed")
    assert WeightsLookup(lambda _: folder, {"wan": began}).find(wan).digest == wan.weights_digest(folder)


def test_a_folder_that_is_not_whole_ends_a_submit_by_the_name_of_the_file(
    command: Command, manifest: Manifest, tmp_path: Path
) -> None:
    weights, output = tiny_wan(tmp_path / "wan"), tmp_path / "out"
    (weights / "vae" / "model.safetensors").write_bytes(b"")
    url = manifest(1, num_frames=[5])
    code, document = replace(command, weights=weights).submit(url, output, "--model", "wan")
    assert code != 0
    assert f"{weights}/vae/model.safetensors is empty; download it again" in json.dumps(document)
    assert not output.exists()
