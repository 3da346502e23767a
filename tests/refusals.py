"""How a refusal looks: ``error: ...`` with what and where, often a ``hint:``, an exit code, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import stage
from tests.places import ROOT


def run_stage(
    capsys: pytest.CaptureFixture[str],
    function: Callable[..., Any],
    root: Path,
    name: str | None = None,
) -> tuple[int, str]:
    """Exit code and words of ``python -m tasks...`` for a stage, in this process."""
    capsys.readouterr()
    code = stage.run(function, root, name)
    said = capsys.readouterr()
    return code, said.err


def command(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    *arguments: str,
) -> tuple[int, str]:
    """Exit code and words of ``phasewise <arguments>`` in the folder ``root``, in this process."""
    from tasks.cli import main

    capsys.readouterr()
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["phasewise", *arguments])
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, capsys.readouterr().err


def refusal(answer: tuple[int, str], code: int, *words: str) -> str:
    """Check that an answer refuses with the code and says these words, in the agreed form."""
    got, said = answer
    assert got == code, said
    assert "Traceback" not in said and "error: " in said, said
    for word in words:
        assert word in said, said
    return said


def project(root: Path) -> Path:
    """Make ``root`` a project of the tiny recipe, without text."""
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text((ROOT / "tests/tiny.yaml").read_text())
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "recipes").mkdir()
    return root


def change(root: Path, old: str, new: str) -> None:
    """Replace a piece of params.yaml, which must be there."""
    path = root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
