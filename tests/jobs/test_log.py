"""One line per event, whatever the values hold."""

import logging

from jobs.log import log_event, open_log

LOG = logging.getLogger("jobs.test")


def test_an_event_is_one_line_of_named_values(tmp_path, capsys):
    with open_log(tmp_path / "log", run="r 1", job="job-00001", rank=3):
        log_event(
            LOG, "clip_failed", level=logging.ERROR, clip="a.b", message='two\nlines and "quotes"', none=None, s=0.12345
        )
    line = (tmp_path / "log").read_text()
    assert capsys.readouterr().err == line
    assert line.count("\n") == 1
    _, rest = line.rstrip().split(" ", 1)
    assert rest == (
        'level=error run="r 1" job=job-00001 rank=3 event=clip_failed clip=a.b '
        'message="two\\nlines and \\"quotes\\"" s=0.123'
    )


def test_a_traceback_stays_on_its_line_and_nothing_is_logged_after_the_end(tmp_path):
    with open_log(tmp_path / "log", run="r"):
        try:
            raise ValueError("broken")
        except ValueError:
            LOG.exception("job_broken")
    LOG.error("too late")
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert 'traceback="Traceback (most recent call last):\\n' in line
    assert "ValueError: broken" in line


def test_control_characters_of_any_plane_are_written_as_escapes(tmp_path):
    with open_log(tmp_path / "log", run="r"):
        log_event(LOG, "odd", url="a\x1b[31m\x9b2J\u202eb", text="é 猫")
    line = (tmp_path / "log").read_text()
    assert line.rstrip("\n").isprintable()
    assert 'url="a\\u001b[31m\\u009b2J\\u202eb"' in line
    assert 'text="é 猫"' in line
