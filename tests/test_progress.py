"""Live progress: one line, whatever shows it."""

from __future__ import annotations

import pytest

from tasks import progress as module
from tasks.progress import Progress, progress


def test_a_pipe_gets_plain_lines_and_the_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(10, "tokens", "phase1") as shown:
        for _ in range(10):
            shown.advance(1, loss=1.23456)
    lines = capsys.readouterr().err.splitlines()
    assert "phase1 · 10/10 tokens (100 %) · loss 1.235" in lines[-1]
    assert "\r" not in lines[-1] and "\x1b" not in lines[-1]


def test_the_rate_forgets_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    shown = Progress(10_000, "tokens", "phase1", done=5000)
    for _ in range(10):
        now += 1.0
        shown.advance(10)
    assert shown.rate == pytest.approx(10, rel=0.2)
    now += 3600.0  # the laptop was closed
    shown.advance(0)
    for _ in range(40):
        now += 1.0
        shown.advance(10)
    assert shown.rate == pytest.approx(10, rel=0.2)


def test_without_a_total_there_is_no_share(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(None, "documents", "reading") as shown:
        shown.advance(3)
    assert "reading · 3 documents" in capsys.readouterr().err
