"""What orchestration costs: a stage through Prefect beside the same stage by DVC alone, and a
`dvc repro` and a flow that find nothing to do.

The stage does no work, so what is measured is what stands around it. A server of its own is
started for the length of the measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.common import Row, Table, main, take_turns, versions

STAGES = 12
STORY = """\
stages:
  work:
    foreach: ${names}
    do:
      cmd: python -c "open('${key}', 'w').write('done')"
      outs: ["${key}"]
"""


def bench(repeats: int = 5) -> Table:
    """Seconds of a stage, of a flow run of one stage, and of runs with nothing to do."""
    table = Table(
        "Orchestration, seconds",
        notes=[
            f"a project of {STAGES} stages that write a word; a Prefect server on this machine",
            "ours: the flow's walk, in a process that has Prefect; theirs: `dvc repro` alone",
            versions("prefect", "dvc"),
        ],
    )
    with _project() as root, _server(root):
        runs = {
            "stage": _flow(["work@n0"], force=True),
            "stage, dvc": lambda: _dvc("--single-item", "--force", "work@n0"),
            "nothing": _flow([f"work@n{i}" for i in range(STAGES)]),
            "nothing, dvc": _dvc,
            "process": lambda: _process(root),
        }
        seconds = take_turns(runs, repeats)
    for what, ours, theirs in (
        ("a stage, in a flow run of its own", "stage", "stage, dvc"),
        ("nothing to do", "nothing", "nothing, dvc"),
        ("a stage, from the command line", "process", "stage, dvc"),
    ):
        table.rows.append(Row(what, seconds[ours], seconds[theirs], "s", better="less"))
    more = min(a - b for a, b in zip(seconds["stage"], seconds["stage, dvc"], strict=True))
    table.notes.append(f"a stage costs {more:.2f} s more through Prefect (the least of the turns)")
    return table


@contextmanager
def _project() -> Iterator[Path]:
    """A DVC project as current folder, all of it up to date."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "dvc.yaml").write_text(STORY)
        names = ", ".join(f"n{i}: {{}}" for i in range(STAGES))
        (root / "params.yaml").write_text(f"names: {{{names}}}\n")
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.environ["DVC_NO_ANALYTICS"] = "1"
        os.chdir(root)
        try:
            for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            yield root
        finally:
            os.chdir(before)


@contextmanager
def _server(root: Path) -> Iterator[None]:
    """A Prefect server for the block, and this process a client of it that says little."""
    os.environ |= {
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    from flows.command import healthy  # first: it switches Prefect's telemetry off
    from flows.services import client_settings, temporary_server

    from prefect.settings import temporary_settings  # isort: skip

    with temporary_server(root / ".prefect", healthy) as url:
        os.environ["PREFECT_API_URL"] = url
        with temporary_settings(client_settings(url)):
            yield


def _flow(addresses: list[str], force: bool = False) -> Any:
    """A flow run of these stages, in this process."""
    from prefect import flow

    from flows.outcome import exit_code
    from flows.walk import walk

    @flow(name="bench", persist_result=False)
    def run() -> Any:
        return walk(lambda dag: addresses, force=addresses * force)

    def once() -> None:
        assert exit_code(run(return_state=True)) == 0

    return once


def _process(root: Path) -> None:
    """A flow run of one stage in a process of its own, as from a terminal."""
    code = (
        "import flows, sys\nfrom bench.orchestration import _flow\n_flow(['work@n0'], force=True)()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def _dvc(*arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", "repro", "--quiet", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main(bench)
