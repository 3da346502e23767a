"""A trainer in a process of its own that begins with torch loaded.

Loading it takes longer than the tiny phases train. So one process loads it once, and each trainer
is a fork of that one, which has trained nothing. `test_pipeline.py` runs the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks import stage
from tests.places import ROOT

_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["tasks.training.trainer"])


def run_stage(
    root: Path, phase: str = "phase1", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -m tasks.training.train <phase> --root <root>``, with more in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        said = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        child = _LOADED.Process(target=_train, args=(root, phase, os.environ | environment, *said))
        child.start()
        child.join()
        assert child.exitcode is not None
        out, err = (Path(path).read_text("utf-8") for path in said)
    return subprocess.CompletedProcess([str(root), phase], child.exitcode, out, err)


def _train(root: Path, phase: str, environment: dict[str, str], out: str, err: str) -> None:
    from tasks.training.train import train

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    sys.exit(stage.run(train, root, phase))
