"""What shards hold, as figures and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from tasks.errors import USAGE, UserError
from tasks.tokens.lookup import Lookup
from tasks.tokens.shards import open_split, splits
from tasks.workspace import Workspace


def split_facts(workspace: Workspace, sources: Iterable[str]) -> list[dict[str, Any]]:
    """The counts and sizes of every split of some sources.

    Raises UserError where shards are missing or damaged.
    """
    facts = []
    for source in sources:
        for split in splits(workspace.tokens(source)):
            there = open_split(workspace.tokens(source), split, verify=False)
            lengths = np.diff(there.ends, prepend=0)
            facts.append(
                {
                    "source": source,
                    "split": split,
                    "documents": there.documents,
                    "tokens": there.tokens,
                    "text_bytes": there.text_bytes,
                    "bytes_per_token": there.text_bytes / there.tokens,
                    "tokens_per_document": there.tokens / there.documents,
                    "median_tokens": float(np.median(lengths)),
                    "longest_tokens": int(lengths.max()),
                    "shards": there.shards,
                    "sha256": there.sha256,
                }
            )
    return facts


def documents_of(lookup: Lookup, first: int, count: int) -> list[dict[str, Any]]:
    """Some documents of a split, decoded from their ids, with where they came from.

    Raises UserError where ``first`` is beyond the split.
    """
    if count and first >= len(lookup):
        raise UserError(
            f"{lookup.source}/{lookup.split} has documents 0 to {len(lookup) - 1:,}, not {first:,}",
            exit_code=USAGE,
        )
    shown = []
    for position in range(first, min(first + count, len(lookup))):
        document, ids = lookup.document(position), lookup.ids(position)
        shown.append(
            {
                "document": position,
                "id": document.id,
                "origin": json.loads(document.origin),
                "bytes": document.bytes,
                "tokens": len(ids),
                "ends_at": int(lookup.tokens.ends[position]),
                "text": lookup.tokenizer.decode(ids),
            }
        )
    return shown
