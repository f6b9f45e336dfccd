import pytest

from rm_methods.system import progress
from rm_methods.system.progress import Progress, clock


@pytest.fixture
def now(monkeypatch):
    """The time that Progress reads, in seconds; a list of one number."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_after_each_interval_and_at_the_end(now, capsys):
    counter = Progress("score", 40, unit="tokens", interval=5)
    now[0] += 2
    counter.advance(10)
    assert capsys.readouterr().err == ""
    now[0] += 3
    counter.advance(10, "loss 0.5")
    assert capsys.readouterr().err == "score: 20/40 tokens  loss 0.5  elapsed 0:05  ETA 0:05\n"
    now[0] += 1
    counter.advance(20)
    assert capsys.readouterr().err == "score: 40/40 tokens  elapsed 0:06  ETA 0:00\n"


def test_short_work_can_be_silent(now, capsys):
    counter = Progress("score", 40, print_end=False)
    now[0] += 2
    counter.advance(40)
    assert capsys.readouterr().err == ""


def test_a_resumed_run_extrapolates_from_its_own_work(now, capsys):
    counter = Progress("SFT", 100, 80)
    now[0] += 10
    counter.advance(10)
    assert capsys.readouterr().err == "SFT: 90/100  elapsed 0:10  ETA 0:10\n"


def test_clock():
    assert [clock(seconds) for seconds in (0.4, 125, 3600)] == ["0:00", "2:05", "1:00:00"]
