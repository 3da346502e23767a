"""Tasks of lm-evaluation-harness from files of JSON lines: nothing is fetched and no code is read.

One example a line, in one of four shapes, which the first line of a file shows:

    {"query": ..., "choices": [...], "gold": 2}         which one follows? (PIQA, ARC, BoolQ, COPA)
    {"context": ..., "continuation": ...}               does it follow? (LAMBADA)
    {"context_options": [...], "continuation": ..., "gold": 0}  after which one? (WinoGrande)
    {"context": ..., "answer": ..., "aliases": [...]}   written to the end of a line (TriviaQA)

These are the shapes of llm-foundry's local data. A task is called as its file, or as the part of
the name after the last `__`: world_knowledge__arc_easy.jsonl is arc_easy.
"""

from __future__ import annotations

import json
import math
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.errors import BAD_DATA, NO_INPUT, UserError, unknown_name
from tasks.files import sha256_file

Row = dict[str, Any]
_MEAN = {"aggregation": "mean", "higher_is_better": True}
ANSWER_TOKENS = 32


def task_files(folder: Path) -> dict[str, Path]:
    """The tasks that a folder holds, by name. Raises UserError where there is none."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise UserError(
            f"there is no file of JSON lines (*.jsonl) in {folder}",
            where="--tasks-from",
            hint="a folder with a file a task, such as piqa.jsonl",
            exit_code=NO_INPUT,
        )
    short = [path.stem.rpartition("__")[2] for path in paths]
    return {name if short.count(name) == 1 else path.stem: path for name, path in zip(short, paths)}


def local_task(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """The configuration of one task, for `lm_eval.api.task.ConfigurableTask`, and the SHA-256 of
    its file.

    Raises UserError where there is no such task, or a line is not an example of its shape.
    """
    files = task_files(folder)
    if name not in files:
        raise unknown_name("task", name, files, where=str(folder))
    path = files[name]
    rows = _read(path)
    shape = _shape(rows[0], path)
    for number, row in enumerate(rows, 1):
        if why := _SHAPES[shape][0](row):
            raise UserError(why, where=f"{path}:{number}", exit_code=BAD_DATA)
    # only what the shape has: the rows become a table with one type a column
    return _SHAPES[shape][1](name, rows), sha256_file(path)


def prompt(query: str) -> str:
    """A query as it stands before its choices, which follow after a space.

    A question that does not end with a cue for the answer gets one, as the harness's own prompts of
    PIQA, ARC and BoolQ have it.
    """
    query = query.rstrip()
    if "Question:" in query and not query.endswith(":"):
        return f"{query}\nAnswer:"
    return query


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces, as SQuAD compares answers."""
    bare = "".join(" " if letter in string.punctuation else letter for letter in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _read(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"not JSON: {error}", where=f"{path}:{number}", exit_code=BAD_DATA
            ) from None
        if not isinstance(row, dict):
            raise UserError("not an object", where=f"{path}:{number}", exit_code=BAD_DATA)
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty", exit_code=BAD_DATA)
    return rows


def _shape(row: Row, path: Path) -> str:
    for shape, keys in _KEYS.items():
        if set(keys) <= set(row):
            return shape
    raise UserError(
        f"an example has the keys {', '.join(sorted(row))}, which is none of the shapes",
        where=f"{path}:1",
        hint="; or ".join(", ".join(keys) for keys in _KEYS.values()),
        exit_code=BAD_DATA,
    )


def _choice_fault(row: Row) -> str | None:
    return _text_fault(row, "query") or _options_fault(row, "choices")


def _schema_fault(row: Row) -> str | None:
    return _text_fault(row, "continuation") or _options_fault(row, "context_options")


def _open_fault(row: Row) -> str | None:
    return _text_fault(row, "context") or _text_fault(row, "continuation")


def _answer_fault(row: Row) -> str | None:
    aliases = row.get("aliases", [])
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        return "aliases is not a list of texts"
    return _text_fault(row, "context") or _text_fault(row, "answer")


def _text_fault(row: Row, key: str) -> str | None:
    value = row.get(key)
    return None if isinstance(value, str) and value.strip() else f"{key} is not a text"


def _options_fault(row: Row, key: str) -> str | None:
    options, gold = row.get(key), row.get("gold")
    if not isinstance(options, list) or not all(isinstance(o, str) and o.strip() for o in options):
        return f"{key} is not a list of texts"
    if type(gold) is not int or not 0 <= gold < len(options):
        return f"gold is {gold!r}, and not the number of one of the {len(options)} {key}"
    return None


def _perplexity(nats: list[float]) -> float:
    """exp of the mean loss of a continuation. The harness's own would be resampled for an error."""
    mean = -sum(nats) / len(nats)
    return math.exp(mean) if mean < 700 else math.inf


def _task(name: str, rows: list[Row], output_type: str, **values: Any) -> dict[str, Any]:
    def dataset(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": output_type,
        "num_fewshot": 0,
        **values,
    }


def _choice(name: str, rows: list[Row]) -> dict[str, Any]:
    kept = [
        {"prompt": prompt(row["query"]), "choices": row["choices"], "gold": row["gold"]}
        for row in rows
    ]
    return _task(
        name,
        kept,
        "multiple_choice",
        doc_to_text=lambda row: row["prompt"],
        doc_to_choice=lambda row: [choice.strip() for choice in row["choices"]],
        doc_to_target=lambda row: row["gold"],
        metric_list=[{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
    )


def _schema(name: str, rows: list[Row]) -> dict[str, Any]:
    """The harness's way for choices that stand before one continuation: the text is a number."""
    keys = ("context_options", "continuation", "gold")
    return _task(
        name,
        [{key: row[key] for key in keys} for row in rows],
        "multiple_choice",
        doc_to_text=lambda row: row["gold"],
        doc_to_choice=lambda row: [option.rstrip() for option in row["context_options"]],
        doc_to_target=lambda row: row["continuation"].strip(),
        metric_list=[{"metric": "acc", **_MEAN}],
    )


def _open(name: str, rows: list[Row]) -> dict[str, Any]:
    return _task(
        name,
        [{"context": row["context"].rstrip(), "continuation": row["continuation"]} for row in rows],
        "loglikelihood",
        doc_to_text=lambda row: row["context"],
        doc_to_target=lambda row: " " + row["continuation"].strip(),
        metric_list=[
            {"metric": "acc", **_MEAN},
            {"metric": "perplexity", "aggregation": _perplexity, "higher_is_better": False},
        ],
    )


def _answer(name: str, rows: list[Row]) -> dict[str, Any]:
    kept = [
        {"context": row["context"].rstrip(), "answers": [row["answer"], *row.get("aliases", [])]}
        for row in rows
    ]

    def judged(row: Row, texts: list[str]) -> dict[str, float]:
        right = {normalised(answer) for answer in row["answers"]}
        return {"exact_match": float(normalised(texts[0]) in right)}

    return _task(
        name,
        kept,
        "generate_until",
        doc_to_text=lambda row: row["context"],
        doc_to_target=lambda row: row["answers"][0],
        generation_kwargs={"until": ["\n"], "max_gen_toks": ANSWER_TOKENS, "do_sample": False},
        process_results=judged,
        metric_list=[{"metric": "exact_match", **_MEAN}],
    )


_KEYS = {
    "choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "open": ("context", "continuation"),
    "answer": ("context", "answer"),
}
_SHAPES: dict[
    str, tuple[Callable[[Row], str | None], Callable[[str, list[Row]], dict[str, Any]]]
] = {
    "choice": (_choice_fault, _choice),
    "schema": (_schema_fault, _schema),
    "open": (_open_fault, _open),
    "answer": (_answer_fault, _answer),
}
