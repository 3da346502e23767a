"""Stage ``clean``: one source through its cleaning profile, shard by shard.

data/raw/<source>/ --profile--> data/clean/<source>/ + ledger.json (what went, and why)

A shard of the source becomes at most one cleaned shard, wherever it is done and in whatever order.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from tasks import stage
from tasks.data.documents import Document, Writer, link_shards, read_shard, shards
from tasks.data.language import check_languages
from tasks.data.profiles import Cleaner, Dropped
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder
from tasks.ledger import Ledger, write_ledgers
from tasks.recipe import Recipe, Source
from tasks.shardwise import identity, map_parts, part_folder, work_folder
from tasks.units import show_count
from tasks.workspace import Workspace

VERSION = 2  # of the rules: parts cleaned under another one are not gone on with


def clean(workspace: Workspace, recipe: Recipe, source: str) -> None:
    """Clean one source by the rules of its profile into data/clean/<source>.

    Characters and white space are brought into one form; each profile removes the noise of its
    kind of text. A document that goes is booked with its reason in ledger.json.
    """
    settings_of_source = recipe.sources[source]
    cleaning = settings_of_source.cleaning
    check_languages(settings_of_source.languages, f"sources.{source}.languages")
    there = shards(workspace.raw(source).resolve())
    paths = [path for split_paths in there.values() for path in split_paths]
    ledger = Ledger("clean", source, notes=cleaning | _no_counts())
    with work_folder(workspace.work("clean", source)) as work:
        results = map_parts(
            partial(clean_part, source=source, cleaning=cleaning),
            [str(path) for path in paths],
            work / "shards",
            [VERSION, source, cleaning, identity(paths)],
            title="cleaning",
            sizes=[path.stat().st_size for path in paths],
        )
        for result in results:
            part = Ledger.from_dict(result)
            ledger.merge(part)
            _add_counts(ledger, part)
        _check_some_left(ledger, settings_of_source)
        with atomic_folder(workspace.clean(source)) as folder:
            folders = [part_folder(work / "shards", number) for number in range(len(paths))]
            link_shards((path for out in folders for path in out.glob("*.parquet")), folder)
            write_ledgers(folder / "ledger.json", [ledger])
    print(f"    {source}: {summary(ledger)}")


def clean_part(path: str, out: Path, source: str, cleaning: dict[str, Any]) -> dict[str, Any]:
    """Clean one shard into ``out`` as ``Source.cleaning`` says; returns its ledger."""
    cleaner = Cleaner.of(cleaning)
    ledger = Ledger("clean", source, notes=_no_counts())
    with Writer(out, shard_bytes=None) as writer:
        for document in read_shard(Path(path)):
            ledger.notes["nul_characters"] += document.text.count("\0")
            result = cleaner.clean(document.text)
            if isinstance(result, Dropped):
                ledger.drop(result.reason, cleaner.shown(document.text), document.bytes)
                continue
            cleaned = Document.of(result, source, document.split, document.origin)
            ledger.keep(document.bytes, cleaned.bytes)
            writer.add(cleaned)
    ledger.notes |= {kind: dict(sorted(count.items())) for kind, count in cleaner.counts.items()}
    return ledger.to_dict()


def _no_counts() -> dict[str, Any]:
    """``masked``: how often each placeholder of pii.py was written; ``languages_dropped``:
    documents by the language that was found."""
    return {"nul_characters": 0, "masked": {}, "languages_dropped": {}}


def _add_counts(ledger: Ledger, part: Ledger) -> None:
    ledger.notes["nul_characters"] += part.notes["nul_characters"]
    for kind in ("masked", "languages_dropped"):
        total = Counter(ledger.notes[kind]) + Counter(part.notes[kind])
        ledger.notes[kind] = dict(sorted(total.items()))


def summary(ledger: Ledger) -> str:
    """One line of a ledger: documents in, out, and dropped by reason."""
    gone = ", ".join(f"{count.documents:,} {why}" for why, count in sorted(ledger.dropped.items()))
    return (
        f"{ledger.taken.documents:,} documents in, {ledger.kept.documents:,} out "
        f"({show_count(float(ledger.kept.bytes))}B)" + (f"; dropped {gone}" if gone else "")
    )


def _check_some_left(ledger: Ledger, settings_of_source: Source) -> None:
    if ledger.kept.documents == 0:
        raise UserError(
            f"no document is left: {summary(ledger)}",
            where=f"sources.{ledger.source}",
            hint=f"check profile ({settings_of_source.profile}) and min_words "
            f"({settings_of_source.min_words}) of this source",
            exit_code=BAD_DATA,
        )


if __name__ == "__main__":
    stage.main(clean, "source")
