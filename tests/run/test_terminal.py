import pytest

from keras_mixer.run import progress, terminal
from tests.run import test_progress


@pytest.fixture
def on_terminal(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    return capsys


def test_a_pipe_gets_plain_lines_alone(capsys):
    with terminal.waiting("Compiling", tell=True):
        terminal.show("a bar")
        terminal.say("word " * 40)
    assert capsys.readouterr().out == f"Compiling ...\n{'word ' * 40}\n"


def test_a_long_pass_moves_and_leaves_nothing(on_terminal, monkeypatch):
    seconds = iter(range(10, 100))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(seconds))
    tell = progress.Countdown("Predicting", 40)
    for done in (10, 30, 40):
        tell(done)
    out = on_terminal.readouterr().out
    assert "Predicting: 30 of 40 images, 20 img/s, ETA 0s" in out
    assert out.endswith("\r\033[K")


def test_a_terminal_gets_a_line_that_moves(on_terminal):
    with terminal.waiting("Compiling", tell=True):
        terminal.say("plain")
    out = on_terminal.readouterr().out
    assert "\r\033[KCompiling ... 0s" in out
    assert "\r\033[Kplain\n" in out
    terminal.clear()  # nothing is left of it
    assert on_terminal.readouterr().out == ""


def test_no_line_is_wider_than_80_columns(on_terminal, tmp_path):
    p = test_progress.make(tmp_path / "x")
    p.moved(50, 8.0)
    test_progress.report(p, 50)
    p.moved(60, None)
    terminal.say("  field: " + "many words " * 20)
    p.close()
    out = on_terminal.readouterr().out
    shown = out.replace("\r\033[K", "\n").split("\n")
    assert "step 50/100  [##########..........] 50%  8 img/s  ETA 50s" in shown
    assert max(map(len, shown)) <= 80
