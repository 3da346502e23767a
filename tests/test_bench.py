"""The arithmetic of the measurements; speed itself is asserted nowhere."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.__main__ import page
from bench.common import Row, Table, hardware, take_turns


def test_a_ratio_is_the_median_over_turns_and_not_the_ratio_of_medians():
    row = Row("x", ours=[1.0, 10.0, 3.0], theirs=[1.0, 1.0, 6.0], unit="tokens/s")
    assert row.ratios == [1.0, 10.0, 0.5]
    assert row.ratio == 1.0


def test_half_the_seconds_are_twice_the_rate():
    row = Row.of_times("x", [1.0], [2.0], work=50, unit="tokens/s")
    assert (row.ours, row.theirs, row.ratio) == ([50.0], [25.0], 2.0)


def test_runs_take_turns_after_warming_up():
    calls = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(taken) for taken in seconds.values()] == [2, 2]


def test_a_page_says_what_was_measured_when_and_by_which_command(capsys):
    table = Table("Steps", [Row("memory", [1e6], [2e6], "bytes", better="less")], [hardware()])
    again = Table.from_dict(json.loads(json.dumps(asdict(table))))
    assert again == table
    text = page([again], "2026-01-02", "python -m bench model")
    for word in ("2026-01-02", "python -m bench model", "torch 2.", "threads", "1 MB", "0.50"):
        assert word in text
    assert "| memory |" in text and "less is better" in text
    table.print()
    assert "memory" in capsys.readouterr().out


def test_an_unknown_measurement_is_named(monkeypatch, capsys):
    from bench.__main__ import main

    monkeypatch.setattr("sys.argv", ["bench", "modle"])
    with pytest.raises(SystemExit):
        main()
    assert "modle" in capsys.readouterr().err
