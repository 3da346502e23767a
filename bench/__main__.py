"""All measurements, one after another, each in a process of its own; ``--write`` keeps them."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import Table, versions
from tasks.files import write_text

MODULES = ("model", "train", "decode", "reader", "encode", "dedup", "cleaning", "orchestration")
PACKAGES = ("torch", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="add bench-<date>.md there")
    given = parser.parse_args()
    names = given.modules or list(MODULES)
    if unknown := set(names) - set(MODULES):
        parser.error(f"no measurement {sorted(unknown)[0]!r}; there are: {', '.join(MODULES)}")
    tables = [measure(name) for name in names]
    if given.write:
        date = datetime.date.today().isoformat()
        path = given.write / f"bench-{date}.md"
        write_text(path, page(tables, date, " ".join(["python -m bench", *given.modules])))
        print(f"wrote {path}")


def measure(name: str) -> Table:
    """Run ``bench.<name>`` in its own process, so that no measurement warms or fills another's."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "table.json"
        subprocess.run([sys.executable, "-m", f"bench.{name}", "--json", str(kept)], check=True)
        return Table.from_dict(json.loads(kept.read_text("utf-8")))


def page(tables: list[Table], date: str, command: str) -> str:
    """What was measured, when, with what, and on what."""
    head = [
        f"# Measured on {date}",
        "",
        f"`{command}` with {versions(*PACKAGES)}. Ours and theirs took turns in one process; "
        "ratios are medians over the turns.",
        "",
    ]
    return "\n".join(head) + "\n" + "\n".join(table.markdown() for table in tables)


if __name__ == "__main__":
    main()
