"""The gallery in a real browser, from a disk: what it shows, finds and sorts, and that text of clips stays text."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

import pytest

from jobs.reports.report_gallery import CLIPS_PER_FILE, data_file
from jobs.reports.run_html import gallery_script, run_page
from tests.jobs.hostile import HOSTILE
from tests.jobs.test_pages import clip_row, gallery, run_document

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [
        clip_row(
            clip_id=f"clip-{i:03}", prompt=f"take {i}", psnr_db=20.0 + i % 7 if i % 2 else None, elapsed_s=float(i)
        )
        for i in range(CLIPS_PER_FILE + 10)
    ]
    rows[3] |= {"outcome": "failed", "video": None, "error": f"OutOfMemoryError in denoise: {HOSTILE}"}
    rows[CLIPS_PER_FILE + 2] |= {"prompt": HOSTILE, "clip_id": "hostile", "without_reuse": "samples/a.0a.12.mp4"}
    folder = tmp_path_factory.mktemp("run") / "reports"
    (folder / "gallery").mkdir(parents=True)
    index = gallery(*rows)
    index.files = ["gallery/00000.js", "gallery/00001.js"]
    for number in range(2):
        part = rows[number * CLIPS_PER_FILE : (number + 1) * CLIPS_PER_FILE]
        (folder / f"gallery/{number:05d}.js").write_bytes(data_file(number, part))
    (folder / "gallery/gallery.js").write_bytes(gallery_script())
    (folder / "run.html").write_text(run_page(run_document(), index))
    return folder / "run.html"


def shown(file: Path, profile: Path, **asked: str) -> str:
    assert CHROMIUM is not None
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=3000",
        f"--user-data-dir={profile}",
    )
    address = f"file://{file}#{urlencode(asked)}"
    ran = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=60, check=True
    )
    return ran.stdout


def names(dom: str) -> list[str]:
    return re.findall(r"<h3>(.*?)</h3>", dom)


def test_the_gallery_shows_finds_and_sorts_clips_from_a_disk(page: Path, tmp_path: Path) -> None:
    failed = shown(page, tmp_path, outcome="failed")
    assert names(failed) == ["clip-003"]
    assert "1 to 1 of 1 clip, of 510 in the run" in failed
    assert f"OutOfMemoryError in denoise: {HOSTILE}" in unescape(failed)
    last = shown(page, tmp_path, page="11", sort="slowest")
    assert names(last)[-1] == "clip-000"
    assert len(names(last)) == 510 - 10 * 48
    hostile = shown(page, tmp_path, search="ALERT(2)", samples="1", clip=str(CLIPS_PER_FILE + 3))
    assert names(hostile) == ["hostile"]
    assert HOSTILE in unescape(hostile)
    assert re.findall(r"<figcaption>(.*?)</figcaption>", hostile) == ["with reuse, pab", "without reuse, same seed"]
    assert HOSTILE not in failed + hostile, "it is escaped"
