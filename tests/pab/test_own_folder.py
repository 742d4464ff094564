"""Folders of one's own in a place where everybody may make any name first: nobody blocks, misleads or stops a process."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pab.execution.compile_cache import CompileCacheError, cache_folder, compile_cache
from pab.own_folder import UnsafeFolderError, held_folder, open_regular, own_folder, remove_left_over
from tests.forked import start_forked

STRANGER = 65534
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's files")


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files in which everybody may make files, like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def first_name(shared: Path) -> Path:
    return shared / f"pab-pipeline-{os.getuid()}"


def make_folder(path: Path) -> None:
    path.mkdir()


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to(path.parent / "elsewhere")


def make_socket(path: Path) -> None:
    # The path of a socket has at most 107 bytes.
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name)


LAID: dict[str, Callable[[Path], None]] = {
    "file": lambda path: path.write_text(""),
    "pipe": os.mkfifo,
    "link": make_link,
    "socket": make_socket,
}


def test_what_is_made_is_this_users_alone(shared: Path) -> None:
    folder = own_folder("a", "b")
    assert folder == first_name(shared) / "a/b"
    for each in (folder, folder.parent, folder.parent.parent):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert own_folder("a", "b") == folder


def test_a_folder_that_others_could_read_is_closed_to_them(shared: Path) -> None:
    first_name(shared).mkdir(mode=0o755)
    own_folder()
    assert stat.S_IMODE(first_name(shared).stat().st_mode) == 0o700


@pytest.mark.parametrize("laid", LAID)
def test_a_name_that_is_taken_is_left_and_the_next_process_finds_the_same_other_one(
    shared: Path, laid: str, caplog: pytest.LogCaptureFixture
) -> None:
    LAID[laid](first_name(shared))
    folder = own_folder("compiled")
    assert folder.parent.parent == shared
    assert folder.parent != first_name(shared)
    assert f"{folder.parent} is used instead: {first_name(shared)} " in caplog.text
    assert own_folder("compiled") == folder
    with held_folder("job-") as held:
        assert held.parent.parent == folder.parent


@ROOT_ONLY
@pytest.mark.parametrize("laid", [*LAID, "folder"])
def test_what_another_user_has_laid_down_stops_nobody(
    shared: Path, laid: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = first_name(shared)
    {**LAID, "folder": make_folder}[laid](path)
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    os.chown(shared / "elsewhere" if laid == "link" else path, STRANGER, STRANGER)
    other = shared / f"{path.name}-0000"
    other.mkdir()
    os.chown(other, STRANGER, STRANGER)
    folder = own_folder("compiled", executed=True)
    assert folder.stat().st_uid == os.getuid()
    assert folder.parent not in (path, other)
    assert list(other.iterdir()) == []
    if laid == "folder":
        assert f"{path} belongs to user {STRANGER} with mode d" in caplog.text
    with compile_cache(None, "default") as cache:
        assert cache.parent == folder


def test_a_folder_of_ones_own_that_others_may_write_to_is_not_taken(shared: Path) -> None:
    make_folder(first_name(shared))
    first_name(shared).chmod(0o777)
    assert own_folder().parent == shared
    assert own_folder() != first_name(shared)


def test_a_place_where_others_may_rename_what_is_ours_is_left_for_another(
    shared: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared.chmod(0o777)
    folder = own_folder("compiled")
    assert not folder.is_relative_to(shared)
    assert f"{shared} belongs to user {os.getuid()} with mode drwxrwxrwx: other users could replace" in caplog.text


def test_work_files_may_lie_where_a_group_writes_but_code_may_not(shared: Path) -> None:
    shared.chmod(0o770)
    assert own_folder("work").is_relative_to(shared)
    assert not own_folder("compiled", executed=True).is_relative_to(shared)


def test_with_no_safe_place_the_error_names_each_and_the_variable(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(UnsafeFolderError, match=r"shared belongs to user .*; .*gone.*; name one with TMPDIR"):
        own_folder(other_places=[str(shared.parent / "gone")])


@pytest.mark.parametrize("loose", ["", "compiled"])
def test_kernels_are_not_taken_from_below_a_folder_that_another_user_could_replace(tmp_path: Path, loose: str) -> None:
    place = tmp_path / "cache"
    cache_folder(str(place), "default")
    (place / loose).chmod(0o770)
    wrong = f"{place / loose} belongs to user {os.getuid()} with mode drwxrwx---: other users could replace".replace(
        "/", "."
    )
    with pytest.raises(CompileCacheError, match=rf"{wrong}.*name another folder with --compile-cache"):
        cache_folder(str(place), "default")


@ROOT_ONLY
@pytest.mark.parametrize("theirs", ["", "compiled"])
def test_kernels_are_not_taken_from_below_another_users_folder(tmp_path: Path, theirs: str) -> None:
    place = tmp_path / "cache"
    cache_folder(str(place), "default")
    os.chown(place / theirs, STRANGER, STRANGER)
    with pytest.raises(CompileCacheError, match=f"belongs to user {STRANGER}"):
        cache_folder(str(place), "default")


def test_a_refused_place_of_kernels_ends_nothing_where_somebody_hears_of_it(tmp_path: Path, shared: Path) -> None:
    place = tmp_path / "cache"
    place.mkdir()
    place.chmod(0o777)
    heard: list[CompileCacheError] = []
    with compile_cache(str(place), "default", refused=heard.append) as folder:
        assert folder.is_relative_to(first_name(shared) / "compiled")
    assert [str(error).startswith(f"{place} belongs to user") for error in heard] == [True]
    assert list(place.iterdir()) == []


def test_a_link_that_is_swapped_in_below_the_place_is_not_followed(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    folder = cache_folder(str(place), "default")
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    with pytest.raises(CompileCacheError, match=f"{folder.name} cannot be opened as a folder".replace("+", ".")):
        cache_folder(str(place), "default")


def test_a_place_named_by_a_link_is_checked_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert cache_folder(str(tmp_path / "link"), "default").is_relative_to(tmp_path / "real")
    (tmp_path / "real").chmod(0o777)
    with pytest.raises(CompileCacheError, match="real belongs to user"):
        cache_folder(str(tmp_path / "link"), "default")


@pytest.mark.parametrize("laid", LAID)
def test_only_regular_files_are_opened_and_nothing_blocks(tmp_path: Path, laid: str) -> None:
    path = tmp_path / "in-use"
    LAID[laid](path)
    if laid == "file":
        os.close(open_regular(path))
        return
    with pytest.raises(OSError, match="in-use"):
        open_regular(path)


def die_holding(note: Path) -> None:
    held = held_folder("job-")
    note.write_text(str(held.__enter__()))
    os._exit(1)


def test_what_killed_processes_left_is_removed_and_what_living_ones_hold_is_not(tmp_path: Path) -> None:
    note = tmp_path / "note"
    variables = {"TMPDIR": str(tmp_path / "shared")}
    start_forked(die_holding, note, environment=variables).wait(30)
    left = Path(note.read_text())
    assert left.is_dir()
    with held_folder("job-") as held:
        assert remove_left_over() == [left]
        assert held.is_dir()
        assert not left.exists()
        assert remove_left_over() == []
    assert not held.exists()


@pytest.mark.parametrize("laid", LAID)
def test_nothing_in_place_of_a_lock_blocks_the_removal(shared: Path, laid: str) -> None:
    folder = own_folder("work") / "job-x"
    folder.mkdir()
    LAID[laid](folder / ".owner")
    (folder.parent / "a-pipe").unlink(missing_ok=True)
    os.mkfifo(folder.parent / "a-pipe")
    (folder.parent / "job-link").symlink_to(shared)
    assert remove_left_over() == ([folder] if laid == "file" else [])
    assert shared.is_dir()


def test_a_folder_whose_process_died_before_it_could_lock_it_goes_after_an_hour() -> None:
    folder = own_folder("work") / "job-x"
    folder.mkdir()
    assert remove_left_over() == []
    os.utime(folder, (time.time() - 3700, time.time() - 3700))
    assert remove_left_over() == [folder]


@ROOT_ONLY
def test_folders_as_jobs_once_made_them_are_not_even_opened(shared: Path) -> None:
    hostile = shared / "pab-job-x"
    hostile.mkdir()
    os.mkfifo(hostile / ".owner")
    for each in (hostile / ".owner", hostile):
        os.chown(each, STRANGER, STRANGER)
    assert remove_left_over() == []
    assert stat.S_ISFIFO((hostile / ".owner").stat().st_mode)
