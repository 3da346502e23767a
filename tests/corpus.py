"""A small original corpus with everything planted that the data stages must find.

    planted = write_corpus(folder)
    recipe = small_recipe(planted["sources"])     # for a workspace in folder's parent

Two sources: ``letters`` are text files, a document a file, with official validation and test
splits; ``notes`` are JSON lines without. Every sentence is drawn anew from a few hundred words, so
that no two texts look alike or share a run of 13 words unless that was planted.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from tasks.recipe import Recipe
from tasks.recipe_file import validate

LETTERS, VALIDATION, TEST, NOTES = 100, 12, 12, 80

_WORDS = {
    "kind": "old quiet travelling young tired stubborn careful lost honest singing clever lonely "
    "cheerful patient restless proud gentle forgetful lucky serious",
    "who": "miller ferryman clockmaker gardener postwoman pilot grandmother baker teacher "
    "fisherman surveyor nurse carpenter mayor thief founder tailor shepherd printer sailor",
    "did": "carried repaired counted buried painted borrowed sold guarded forgot measured found "
    "washed followed described mended traded collected polished watched lifted",
    "look": "cracked blue broken heavy silver unfinished missing grey wooden copper narrow "
    "borrowed crooked enormous painted empty rusty golden spotless folded",
    "what": "kettle lantern pump letter gate map spoon whistle barrel boat wall jar compass "
    "blanket nail sledge basket organ rope basin",
    "place": "river bridge meadow schoolhouse pond station barn hill mill lake birch coast road "
    "market tower orchard quarry chapel harbour window",
    "where": "beside under behind near inside above below beyond across outside",
    "when": "before breakfast|at dusk|during the storm|on a Sunday|after the fair|in early March"
    "|all night|once a week|for nine days|late in autumn|at low tide|without a word|by candlelight"
    "|twice that winter|as usual",
    "why": "because nobody else would|to please a neighbour|and told no one|for a small reward"
    "|hoping for better weather|out of habit|to settle an argument|and laughed about it later"
    "|for the sake of peace|with great patience|to win a bet|and wrote it down|against all advice",
}
_CHOICES = {name: words.split("|" if "|" in words else " ") for name, words in _WORDS.items()}
_SHAPES = (
    "The {kind} {who} {did} a {look} {what} {where} the {place} {when}.",
    "A {kind} {who} {did} the {look} {what} {why}.",
    "The {who} from the {place} {did} one {look} {what} {when}, {why}.",
    '"Some {kind} {who} {did} my {look} {what}," said the {who2}, "{where} that {place}."',
    "It was the {who}, {kind} as ever, who {did} that {what} {where} the {look} {place}.",
)


def story(number: int, sentences: int = 12) -> str:
    """A text of its own for each number, in paragraphs of four sentences."""
    draw = random.Random(f"story {number}")
    made = []
    for _ in range(sentences):
        words = {name: draw.choice(choices) for name, choices in _CHOICES.items()}
        made.append(draw.choice(_SHAPES).format(**words, who2=draw.choice(_CHOICES["who"])))
    return "\n\n".join(" ".join(made[i : i + 4]) for i in range(0, len(made), 4))


def nearly(text: str) -> str:
    """The text with two words changed: a Jaccard similarity of about 0.93."""
    words = text.split(" ")
    words[3], words[-3] = "seventeen", "yesterday"
    return " ".join(words)


def words(text: str) -> list[str]:
    """What the data stages compare, in plain Python: runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def write_corpus(folder: Path) -> dict[str, Any]:
    """Write the corpus into ``folder``: letters/, validation/, test/, notes.jsonl, broken/.

    Returns:
        What was planted. ``sources``: the two sources for a recipe in ``folder``'s parent;
        ``documents``: source -> split -> how many were written; then the texts that must go,
        by source: ``stubs`` (fewer than 5 words), ``exact`` and ``near`` duplicates, ``leaks``
        (training text that duplicates held-out text; they are not listed again among the
        duplicates), ``contaminated`` (mostly a held-out ``passage``); the texts that lose that
        passage alone, ``cut``; and ``broken``: name -> path of a file that cannot be read as it is.
    """
    letters = [story(i) for i in range(LETTERS)]
    validation = [story(1000 + i) for i in range(VALIDATION)]
    test = [story(2000 + i) for i in range(TEST)]
    notes = [story(3000 + i) for i in range(NOTES)]
    passage = validation[9].split("\n\n")[1]
    planted: dict[str, Any] = {
        "stubs": {"letters": ["Too short."], "notes": ["Nothing here", " \n "]},
        "exact": {
            "letters": [letters[3], letters[7].replace(" ", "  ").upper()],  # neither counts
            "notes": [notes[5], letters[20]],
        },
        "near": {
            "letters": [nearly(letters[11])],
            "notes": [nearly(notes[6]), nearly(letters[21])],
        },
        "leaks": {"letters": [validation[2], nearly(test[4])], "notes": [nearly(validation[3])]},
        "contaminated": {"letters": [f"{story(9000, 2)}\n\n{passage}"], "notes": []},
        "cut": {"letters": [f"{story(9001)}\n\n{passage}"], "notes": []},
        "passage": passage,
    }
    kinds = ("stubs", "exact", "near", "leaks", "contaminated", "cut")
    letters += [text for kind in kinds for text in planted[kind]["letters"]]
    notes += [text for kind in kinds for text in planted[kind]["notes"]]
    _write_texts(folder / "letters", letters)
    _write_texts(folder / "validation", validation)
    _write_texts(folder / "test", test)
    lines = [json.dumps({"title": f"Note {i}", "text": text}) for i, text in enumerate(notes)]
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    at = folder.name
    planted["sources"] = {
        "letters": {
            "files": {
                "train": [f"{at}/letters/*.txt"],
                "validation": [f"{at}/validation/*.txt"],
                "test": [f"{at}/test/*.txt"],
            },
            "min_words": 5,
            "license": "Apache-2.0",
        },
        "notes": {
            "files": {"train": [f"{at}/notes.jsonl"]},
            "min_words": 5,
            "license": "Apache-2.0",
        },
    }
    planted["documents"] = {
        "letters": {"train": len(letters), "validation": VALIDATION, "test": TEST},
        "notes": {"train": len(notes)},
    }
    planted["broken"] = _write_broken(folder / "broken")
    return planted


def _write_texts(folder: Path, texts: list[str]) -> None:
    """One file a text; the first has a byte order mark, the second Windows line ends."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = [text.encode() for text in texts]
    contents[0] = b"\xef\xbb\xbf" + contents[0]
    contents[1] = contents[1].replace(b"\n", b"\r\n")
    for number, content in enumerate(contents):
        (folder / f"{number:03d}.txt").write_bytes(content)


def _write_broken(folder: Path) -> dict[str, Path]:
    """Files in wrong encodings, or that are no text."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"Le café était “fermé”. {story(9100, 3)}"
    contents = {
        "cp1252.txt": text.encode("cp1252"),
        "mixed.txt": text.encode() + b" caf\xe9",  # UTF-8 but for one byte
        "utf16.txt": text.encode("utf-16"),
        "gzip.txt": b"\x1f\x8b\x08\x00" + bytes(range(64)),
        "binary.txt": bytes(range(256)) * 8,
        "parquet.txt": b"PAR1" + bytes(32),
        "surrogate.jsonl": b'{"text": "a lone \\ud800 surrogate among some words"}\n',
        "bad_line.jsonl": b'{"text": "fine"}\n\n{"text": oops}\n',
        "no_text.jsonl": b'{"txet": "the column is spelt wrong", "id": "1"}\n',
        "number.jsonl": b'{"text": 5}\n',
        "list.jsonl": b'["text"]\n',
        "uneven.csv": b"text,id\nfine,1\nlost,2,3\n",
        "unclosed.csv": b'text,id\n"never closed,1\n',
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def small_recipe(sources: dict[str, Any], **sections: Any) -> Recipe:
    """A whole valid recipe around some sources; ``sections`` replace whole sections of it."""
    first = next(iter(sources))
    return validate(
        {
            "name": "small",
            "description": "The planted corpus",
            "seed": 42,
            "sources": sources,
            "dedup": {},
            "held_out": {"validation": 0.05, "test": 0.05},
            "tokenizer": {"vocab_size": 512},
            "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "max_seq_len": 64},
            "training": {"seq_len": 64, "batch_tokens": 512},
            "phases": {"phase1": {"starts_from": "init", "tokens": 8192, "mixture": {first: 1.0}}},
            "evaluation": {},
            "release": {"phase": "phase1"},
        }
        | sections
    )
