"""Two models on the same text: which is better, and is the difference more than noise?

    A, B -> one protocol -> nats of each document of each set -> paired bootstrap by document
         -> difference in bits per byte on each set, and on the mean of the sets

A set is its text: both models read the very same documents, each with its own tokenizer, so bits
per byte and word perplexity compare. Figures a token do so between equal tokenizers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.errors import BAD_DATA, NO_INPUT, UserError, unknown_name
from tasks.evaluation import documents
from tasks.evaluation.bootstrap import Difference, paired, paired_mean
from tasks.evaluation.contestants import Contestant, facts_of, protocol_between, sums_on
from tasks.evaluation.documents import HeldOutText, held_out_text
from tasks.evaluation.scoring import Protocol
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.recipe import Recipe

LEVEL = 0.05


@dataclass(frozen=True)
class SetComparison:
    """Both models on one set."""

    name: str
    fingerprint: str
    documents: int
    text_bytes: int
    words: int
    first: dict[str, float]
    """Figures, as in evaluation/<phase>.json."""
    second: dict[str, float]
    difference: Difference
    """Bits per byte, first less second."""


@dataclass(frozen=True)
class Comparison:
    first: Contestant
    second: Contestant
    protocol: Protocol
    level: float
    sets: list[SetComparison]
    overall: Difference
    """On the mean of the sets."""
    notes: list[str]

    @property
    def same_tokenizer(self) -> bool:
        return self.first.tokenizer == self.second.tokenizer

    @property
    def better(self) -> Contestant | None:
        """The one whose mean over the sets is lower by more than noise."""
        if not self.overall.p < self.level:
            return None
        return self.first if self.overall.difference < 0 else self.second

    def verdict(self) -> str:
        """One sentence."""
        over = f"on the mean of {len(self.sets)} sets" if len(self.sets) > 1 else self.sets[0].name
        gap, spread = abs(self.overall.difference), f"± {self.overall.se:.4f}"
        if not self.overall.difference and not self.overall.se:
            return f"{self.first.name} and {self.second.name} do not differ at all ({over})"
        told = f"{gap:.4f} {spread} bits per byte, p {_shown_p(self.overall.p)}, {over}"
        if self.better is None:
            return f"{self.first.name} and {self.second.name} differ by no more than noise ({told})"
        worse = self.second if self.better is self.first else self.first
        return f"{self.better.name} is better than {worse.name} ({told})"

    def record(self, first: str = "first", second: str = "second") -> dict[str, Any]:
        """As plain values; ``first`` and ``second`` name the models' keys."""
        sets = {
            one.name: {
                "fingerprint": one.fingerprint,
                "documents": one.documents,
                "words": one.words,
                "text_bytes": one.text_bytes,
                first: one.first["bits_per_byte"],
                second: one.second["bits_per_byte"],
                **_known(one.difference, one.documents),
                "figures": {first: one.first, second: one.second},
            }
            for one in self.sets
        }
        return {
            first: facts_of(self.first),
            second: facts_of(self.second),
            "protocol": asdict(self.protocol),
            "same_tokenizer": self.same_tokenizer,
            "level": self.level,
            "sets": sets,
            "overall": asdict(self.overall),
            "verdict": self.verdict(),
            "notes": self.notes,
        }


def _known(difference: Difference, documents: int) -> dict[str, float]:
    """A difference as plain values, without what a single document cannot tell."""
    values = asdict(difference)
    return {k: values[k] for k in values if documents > 1 or k not in ("se", "low", "high")}


def compare(
    first: Contestant,
    second: Contestant,
    texts: Sequence[HeldOutText],
    workspace: Workspace,
    recipe: Recipe | None,
    *,
    level: float = LEVEL,
    context: int | None = None,
) -> Comparison:
    """Compare two models on texts.

    Args:
        workspace: where evaluations are that may hold the figures already.
        recipe: whose stride and treatment of documents hold; None: windows that do not overlap.
        level: a difference with a p-value below it is more than noise.
        context: tokens seen at once; default: the shorter of the two models' contexts.

    Raises UserError where there is no text, or a model cannot be scored on it.
    """
    empty = [text.name for text in texts if not int(text.bytes.sum())]
    if empty or not texts:
        raise UserError(
            f"there is no text in {', '.join(empty)}" if empty else "there is no set to compare on",
            exit_code=NO_INPUT,
        )
    protocol = protocol_between(first, second, workspace, recipe, context)
    (ours, said), (theirs, also) = (
        sums_on(model, texts, protocol, workspace) for model in (first, second)
    )
    rows = []
    for text in texts:
        mine, other = ours[text.name], theirs[text.name]
        for model, sums in ((first, mine), (second, other)):
            if not np.isfinite(sums.nats).all():
                raise UserError(
                    f"{model.name}: the loss on {text.name} is not finite",
                    hint="the weights are broken",
                    exit_code=BAD_DATA,
                )
        rows.append(
            SetComparison(
                name=text.name,
                fingerprint=text.fingerprint,
                documents=len(text.texts),
                text_bytes=int(text.bytes.sum()),
                words=int(text.words.sum()),
                first=documents.figures(mine, text),
                second=documents.figures(other, text),
                difference=paired(mine.nats, other.nats, text.bytes, level),
            )
        )
    overall = paired_mean([(ours[t.name].nats, theirs[t.name].nats, t.bytes) for t in texts], level)
    return Comparison(first, second, protocol, level, rows, overall, said + also)


def held_out_texts(
    workspace: Workspace, recipe: Recipe, names: Sequence[str] | None = None
) -> list[HeldOutText]:
    """The text of the workspace's held-out sets, cut where evaluation.max_tokens cuts them.

    ``names``: those wanted; default: all. Raises UserError for one that is not there.
    """
    from tasks.tokens.text import load_tokenizer
    from tasks.training.validate import held_out_sets

    cap = recipe.evaluation.max_tokens
    found = {s.name: s for s in held_out_sets(workspace, recipe, cap, ("validation", "test"))}
    for name in names or ():
        if name not in found:
            raise unknown_name("held-out set", name, found)
    tokenizer = load_tokenizer(workspace.tokenizer)
    return [
        held_out_text(workspace, name, found[name].document_bytes, tokenizer)
        for name in (found if names is None else dict.fromkeys(names))
    ]


def texts_of_files(paths: Sequence[Path], kind: str = "auto") -> list[HeldOutText]:
    """Anybody's files as sets, read as a source's files are; a set a file, by its path.

    Args:
        kind: a format of a source's files (paragraphs, lines, txt, jsonl, csv, parquet); auto: by
            ending, plain text by paragraphs, for the error of a figure comes from its documents.

    Raises UserError naming file and line for what cannot be read, and for a file without text.
    """
    import glob

    from tasks.data.local import LocalReader
    from tasks.data.rows import maker
    from tasks.recipe import Files, Source

    plain = (".txt", ".text", ".md", ".rst", ".tex")
    found = []
    for path in dict.fromkeys(paths):
        if not path.is_file():
            raise UserError(f"there is no file {path}", where="--text", exit_code=NO_INPUT)
        chosen = "paragraphs" if kind == "auto" and path.suffix.lower() in plain else kind
        files = Files(train=[glob.escape(path.name)], format=chosen)  # type: ignore[arg-type]
        rows = LocalReader(files, path.parent, "--text").rows("train")
        made = maker(Source(files=files), "--text")(rows)
        texts = tuple(text for text, row in made if text.strip() and row.dropped is None)
        if not texts:
            raise UserError("there is no text in it", where=str(path), exit_code=NO_INPUT)
        found.append(HeldOutText(str(path), texts))
    return found


def _shown_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else f"{p:.1e}"
