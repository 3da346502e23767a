"""DVC over gigabytes of shards: this project's way of linking (`.dvc/config`) and DVC's default.

The default copies every file into the cache where the file system has no reflinks (ext4). Seconds
of each command, and the disk that shards and cache take together, each inode counted once. The
shards are random bytes, of the size that the encode stage writes.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.common import Row, Table, main
from tasks.files import write_text

SHARDS, SHARD_BYTES, TURNS = 12, 2**28, 2
DEFAULT = "reflink,copy"
CONFIG = Path(__file__).parent.parent / ".dvc" / "config"
STAGE = """\
stages:
  encode:
    cmd: python -c "import os; os.replace('made', 'data')"
    outs: [data]
"""


def bench() -> Table:
    """Add, status, repro, checkout, and the disk they take."""
    ours = configparser.ConfigParser()
    ours.read(CONFIG)
    kinds = {"ours": ours["cache"]["type"].strip('"'), "theirs": DEFAULT}
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in kinds}
    for _ in range(TURNS):
        for side, kind in kinds.items():
            with tempfile.TemporaryDirectory() as folder:
                taken[side].append(_one_turn(Path(folder), kind))
    table = Table(
        f"DVC over {SHARDS} shards of {SHARD_BYTES // 2**20} MiB, seconds",
        notes=[
            f"ours: cache.type {kinds['ours']}; theirs: {DEFAULT}, DVC's default",
            "shards are in the page cache; DVC hashes with MD5 on one thread",
        ],
    )
    for what in taken["ours"][0]:
        unit = "bytes" if what.startswith("disk") else "s"
        values = {side: [turn[what] for turn in turns] for side, turns in taken.items()}
        table.rows.append(Row(what, values["ours"], values["theirs"], unit, better="less"))
    return table


def _one_turn(root: Path, kind: str) -> dict[str, float]:
    """What each command took in a project of its own."""
    _dvc(root, "init", "--no-scm")
    _dvc(root, "config", "cache.type", kind)
    write_text(root / "dvc.yaml", STAGE)
    _write_shards(root / "made")
    taken = {"repro: hash the shards, put them into the cache": _dvc(root, "repro")}
    taken["disk, shards and cache"] = float(_disk(root))
    taken["repro, nothing to do"] = _dvc(root, "repro")
    taken["status"] = _dvc(root, "status")
    shutil.rmtree(root / "data")
    taken["checkout, from the cache"] = _dvc(root, "checkout")
    for path in (root / "data").iterdir():
        os.utime(path)
    taken["status after a touch: hash again"] = _dvc(root, "status")
    (root / "data").rename(root / "given")
    for path in (root / "given").iterdir():
        shutil.copyfile(path, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    shutil.rmtree(root / ".dvc" / "cache")
    taken["add"] = _dvc(root, "add", "given")
    return taken


def _write_shards(folder: Path) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(SHARDS):
        (folder / f"train-{number:05d}.bin").write_bytes(random.bytes(SHARD_BYTES))


def _disk(root: Path) -> int:
    """Bytes on disk of all files below, a file with two names counted once."""
    found = {
        (stat.st_dev, stat.st_ino): stat.st_blocks * 512
        for path in root.rglob("*")
        if path.is_file()
        for stat in [path.stat()]
    }
    return sum(found.values())


def _dvc(root: Path, *arguments: str) -> float:
    """Seconds of one command, from start to end of its process."""
    command = [sys.executable, "-m", "dvc", *arguments, "--quiet"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode and arguments[0] != "status":
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}")
    return seconds


if __name__ == "__main__":
    main(bench)
