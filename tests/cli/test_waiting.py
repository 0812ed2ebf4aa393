"""What a terminal shows while a step goes on that cannot be counted."""

import time

import pytest

from multipatch_jax.cli import waiting as module
from multipatch_jax.cli.waiting import loading, waiting


@pytest.fixture
def watched(monkeypatch):
    """Standard error is taken for a terminal, and a tenth of a second is long."""
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    monkeypatch.setattr(module, "PERIOD", 0.02)
    monkeypatch.setattr(module, "is_watched", lambda: True)


def test_a_long_step_is_shown_and_wiped(watched, capsys):
    with waiting("compiling"):
        time.sleep(0.6)
    shown = capsys.readouterr().err
    assert "compiling: 00:00" in shown
    assert shown.split("\r")[-1].strip() == ""
    assert shown.split("\r")[-2].strip() == ""


def test_the_seconds_count_from_the_steps_beginning(watched, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 1.2)
    with waiting("compiling"):
        time.sleep(1.5)
    shown = capsys.readouterr().err
    assert "compiling: 00:01" in shown
    assert "00:00" not in shown


def test_a_short_step_is_not_shown(watched, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    with waiting("compiling"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with waiting("compiling"):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_wait(watched, capsys):
    @waiting("compiling")
    def work():
        time.sleep(0.6)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    before = capsys.readouterr().err
    time.sleep(0.2)
    assert "compiling" in before
    assert capsys.readouterr().err == ""


def test_only_a_folder_of_our_own_is_waited_for(watched, tiny, tmp_path, capsys):
    """The library shows a bar of its own while it reads a folder of Hugging Face's."""
    (tmp_path / "multipatch_config.json").touch()
    for folder in (tmp_path, tiny.folder):
        with loading(folder):
            time.sleep(0.6)
        assert ("loading" in capsys.readouterr().err) == (folder == tmp_path)
