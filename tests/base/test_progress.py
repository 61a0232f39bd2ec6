"""Progress: rate and time left are those of this session."""

import time

import pytest

from ganbench.base.progress import Reporter, Task


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


@pytest.mark.parametrize("before", [0, 50_000])
def test_a_resumed_run_has_the_rate_and_the_time_left_of_its_own_steps(clock, capfd, before):
    """Ten steps a second, whatever was done before, and though the first step comes after a minute of preparation."""
    with Reporter().task("train", 60_000) as task:
        clock.now += 60
        for step in range(before + 1, before + 402):
            task.at(step, "d_loss 1")
            clock.now += 0.1
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == f"train: {before + 1:,}/60,000  d_loss 1"  # nothing is known of the rate yet
    assert len(lines) > 3
    for line in lines[1:]:
        _, rate, left, text = line.split("  ")
        assert (rate, text) == ("10.0/s", "d_loss 1")
        assert float(left.split()[0]) == pytest.approx((60_000 - before) / 600, abs=1)


def test_batches_have_the_rate_of_their_images(clock, capfd):
    advance = Reporter().progress("features", 1000)
    for _ in range(10):
        clock.now += 11
        advance(100)
    rates = [line.split("  ")[1] for line in capfd.readouterr().err.splitlines()[1:]]
    assert rates == ["9.1/s"] * 9


def test_a_bar_starts_where_an_earlier_session_stopped(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    task = Task("train", 1000, quiet=False)
    task.at(901)
    task.at(902)
    assert (task.bar.initial, task.bar.n) == (901, 902)
    assert task.bar.format_dict["elapsed"] < 1
    task.bar.close()


def test_a_quiet_task_prints_nothing(clock, capfd):
    with Reporter(quiet=True).task("train", 10) as task:
        for step in range(1, 11):
            clock.now += 20
            task.at(step)
    assert capfd.readouterr().err == ""
