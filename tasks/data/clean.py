"""Stage ``clean``: one source through its cleaning profile.

data/raw/<source>/ --profile--> data/clean/<source>/ + ledger.json (what went, and why)
"""

from __future__ import annotations

from functools import partial

from tasks import stage
from tasks.data.documents import Document, Writer, read
from tasks.data.profiles import Dropped, clean_text
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder
from tasks.ledger import Ledger, write_ledgers
from tasks.progress import progress
from tasks.recipe import Recipe, Source
from tasks.units import show_count
from tasks.workers import batches, map_ordered
from tasks.workspace import Workspace


def clean(workspace: Workspace, recipe: Recipe, source: str) -> None:
    """Clean one source by the rules of its profile into data/clean/<source>.

    Characters and white space are brought into one form; each profile removes the noise of its
    kind of text. A document that goes is booked with its reason in ledger.json.
    """
    settings_of_source = recipe.sources[source]
    profile, min_words = settings_of_source.profile, settings_of_source.min_words
    ledger = Ledger("clean", source, notes={"profile": profile, "nul_characters": 0})
    documents = read(workspace.raw(source))
    cleaning = partial(clean_batch, profile=profile, min_words=min_words)
    with atomic_folder(workspace.clean(source)) as folder:
        with Writer(folder) as writer, progress(None, "documents", "cleaning") as shown:
            for batch, results in map_ordered(cleaning, batches(documents, lambda d: d.bytes)):
                for document, result in zip(batch, results, strict=True):
                    ledger.notes["nul_characters"] += document.text.count("\0")
                    if isinstance(result, Dropped):
                        ledger.drop(result.reason, document.text)
                        continue
                    cleaned = Document.of(result, source, document.split, document.origin)
                    ledger.keep(document.bytes, cleaned.bytes)
                    writer.add(cleaned)
                shown.advance(len(batch))
        _check_some_left(ledger, settings_of_source)
        write_ledgers(folder / "ledger.json", [ledger])
    print(f"    {source}: {summary(ledger)}")


def clean_batch(documents: list[Document], profile: str, min_words: int) -> list[str | Dropped]:
    """``clean_text`` of each document."""
    return [clean_text(document.text, profile, min_words) for document in documents]


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
