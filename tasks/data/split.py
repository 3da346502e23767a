"""Stage ``split``: the documents that stay, in train, validation and test, decontaminated.

    data/clean/*/ + data/dedup/ --drop duplicates--> official splits hold; where a source has no
    validation or test split, one is made by hash --decontaminate train--> data/documents/<source>/

The cleaned shards are read three times, each time shard by shard: for the held-out runs, for the
training documents that share them, and to write. The split stands before the tokenizer is trained,
so that no later stage learns anything from held-out text. A source without a train split is held
out as a whole: every training text is decontaminated against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tasks import stage
from tasks.data.assignment import (
    Rule,
    Stretch,
    assigned,
    bounds,
    settled,
    stale,
    stretches,
    tally,
)
from tasks.data.clean import summary
from tasks.data.decisions import Decisions, Place
from tasks.data.decontaminate import RUNS_SHOWN, without
from tasks.data.documents import Document, Writer, link_shards, read_shard, split_of
from tasks.data.held_out import (
    count_shared,
    held_out_part,
    join_runs,
    open_runs,
    rare_pairs,
    shared_part,
)
from tasks.data.repeats import FILE, blank_note, merge_note, repeats_of, without_repeats
from tasks.errors import BAD_DATA, UserError
from tasks.files import atomic_folder
from tasks.ledger import Ledger, write_ledgers
from tasks.recipe import SPLITS, Recipe, Split
from tasks.shardwise import identity, map_parts, part_folder, work_folder
from tasks.workspace import Workspace

VERSION = 1  # of the rules: parts made under another one are not gone on with


@dataclass(frozen=True)
class Plan:
    """What each pass needs to know; the same for every shard.

    Attributes:
        decisions: data/dedup, absolute.
        seed, ngram: of the recipe.
        rules: source -> how its training documents are shared out.
        runs: folder of the held-out runs, or None where nothing is decontaminated.
    """

    decisions: str
    seed: int
    ngram: int
    rules: dict[str, Rule]
    runs: str | None


def split(workspace: Workspace, recipe: Recipe) -> None:
    """Write the documents that stay as train, validation and test splits of each source.

    Applies the decisions of dedup, makes held-out splits where a source has no official ones, and
    removes from training text what it shares with any held-out text of any source.
    """
    decisions = workspace.dedup.resolve()
    there = _stretches(workspace, recipe, decisions)
    files = [decisions / "decisions.parquet", *(Path(stretch.path) for stretch in there)]
    files += [decisions / FILE] if (decisions / FILE).exists() else []
    key = [VERSION, recipe.seed, recipe.held_out.model_dump(), identity(files)]
    with work_folder(workspace.work("split")) as work:
        rules = _rules(there, recipe, decisions, work / "draws", key)
        runs = str(work / "runs") if recipe.held_out.decontaminate else None
        plan = Plan(str(decisions), recipe.seed, recipe.held_out.ngram, rules, runs)
        pairs = _pairs(there, plan, work, key) if runs else {}
        results = map_parts(
            partial(write_part, plan=plan),
            [[stretch, pairs.get(stretch)] for stretch in there],
            work / "written",
            key,
            title="writing",
            sizes=_sizes(there),
        )
        ledgers = [_ledger(source, there, results) for source in recipe.sources]
        for ledger in ledgers:
            _check_some_left(ledger, trains=recipe.sources[ledger.source].trains)
        folders = [part_folder(work / "written", number) for number in range(len(there))]
        with atomic_folder(workspace.documents) as folder:
            for ledger in ledgers:
                of_source = [f for s, f in zip(there, folders) if s.source == ledger.source]
                _gather(of_source, folder / ledger.source, set(rules[ledger.source].below))
                write_ledgers(folder / ledger.source / "ledger.json", [ledger])
    for ledger in ledgers:
        shares = ", ".join(f"{n:,} {name}" for name, n in ledger.notes["splits"].items())
        spans = ledger.notes.get("repeated_spans")
        passages = f", {spans['documents_cut']:,} repeated passages" if spans else ""
        print(
            f"    {ledger.source}: {summary(ledger)}; {ledger.notes['documents_cut']:,} lost "
            f"sentences{passages} ({shares})"
        )


def _stretches(workspace: Workspace, recipe: Recipe, decisions: Path) -> list[Stretch]:
    """The cleaned shards. Raises UserError where dedup saw another number of documents."""
    with Decisions(decisions) as opened:
        there = stretches(workspace, recipe.sources)
        counts: dict[Place, int] = {}
        for stretch in there:
            counts[stretch[:2]] = counts.get(stretch[:2], 0) + stretch.rows
        for source, name in sorted(counts.keys() | opened.counts.keys()):
            if counts.get((source, name), 0) != opened.counts.get((source, name), 0):
                raise stale(source)
    return there


def _rules(
    there: list[Stretch], recipe: Recipe, decisions: Path, work: Path, key: Any
) -> dict[str, Rule]:
    """Each source's rule; the draws of all its documents are looked at where it makes a split."""
    rules = {}
    for source in recipe.sources:
        official = {stretch.split for stretch in there if stretch.source == source}
        rule = bounds(recipe.held_out, official) if "train" in official else Rule()
        if rule.below:
            own = [s for s in there if s.source == source and s.split == "train"]
            tallies = map_parts(
                partial(tally, decisions=str(decisions), seed=recipe.seed, rule=rule),
                own,
                work / source,
                key,
                title=f"splitting {source}",
                sizes=[100 * stretch.rows for stretch in own],
            )
            rule = settled(rule, tallies)
        rules[source] = rule
    return rules


def _pairs(there: list[Stretch], plan: Plan, work: Path, key: Any) -> dict[Stretch, str]:
    """Index the held-out runs; per shard with training text, the file of what it shares."""
    held = [s for s in there if s.split != "train" or plan.rules[s.source].below]
    found = map_parts(
        partial(index_part, plan=plan),
        held,
        work / "held_out",
        key,
        title="held-out runs",
        sizes=_sizes(held),
    )
    files = {
        (stretch.source, name, number): part_folder(work / "held_out", number) / f"{name}.npy"
        for number, (stretch, names) in enumerate(zip(held, found, strict=True))
        for name in names
    }
    order = {source: place for place, source in enumerate(plan.rules)}
    named = sorted(files, key=lambda item: (order[item[0]], SPLITS.index(item[1]), item[2]))
    join_runs([(f"{item[0]}/{item[1]}", files[item]) for item in named], work / "runs")
    train = [stretch for stretch in there if stretch.split == "train"]
    map_parts(
        partial(search_part, plan=plan),
        train,
        work / "shared",
        key,
        title="decontaminating",
        sizes=_sizes(train),
    )
    paths = [part_folder(work / "shared", number) / "pairs.npy" for number in range(len(train))]
    count_shared(paths, work / "runs")
    return {stretch: str(path) for stretch, path in zip(train, paths, strict=True)}


def index_part(stretch: Stretch, out: Path, plan: Plan) -> list[Split]:
    """First pass over a shard: the runs of its held-out documents."""
    documents = assigned(stretch, Path(plan.decisions), plan.seed, plan.rules[stretch.source])
    return held_out_part(documents, out, plan.ngram)


def search_part(stretch: Stretch, out: Path, plan: Plan) -> int:
    """Second pass: which training documents share which of them."""
    assert plan.runs
    documents = _documents(stretch, plan, Ledger("split", stretch.source))
    return shared_part(documents, out, open_runs(Path(plan.runs)), plan.ngram)


def write_part(part: tuple[Stretch, str | None], out: Path, plan: Plan) -> dict[str, Any]:
    """Third pass: write what stays; returns the ledger."""
    stretch, pairs = part
    ledger = Ledger("split", stretch.source, notes={"documents_cut": 0, "shared_runs": []})
    splits: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    shared = rare_pairs(Path(pairs), Path(plan.runs)) if pairs and plan.runs else {}
    runs = open_runs(Path(plan.runs)) if shared and plan.runs else None
    documents = _documents(stretch, plan, ledger)
    with Writer(out, shard_bytes=None) as writer:
        for number, document in documents:
            if runs and number in shared:
                kept = without(document, shared[number], runs, plan.ngram, ledger)
            else:
                ledger.keep(document.bytes)
                kept = document
            if kept:
                writer.add(kept)
                splits[kept.split] += 1
    ledger.notes["splits"] = splits
    return ledger.to_dict()


def _documents(stretch: Stretch, plan: Plan, ledger: Ledger) -> Iterator[tuple[int, Document]]:
    """The documents of a shard that stay, without the passages that dedup found repeated."""
    decisions = Path(plan.decisions)
    documents = assigned(stretch, decisions, plan.seed, plan.rules[stretch.source])
    found = repeats_of(decisions, stretch.source, stretch.split, stretch.first, stretch.rows)
    return without_repeats(documents, found, ledger)


def _ledger(source: str, there: list[Stretch], results: Sequence[dict[str, Any]]) -> Ledger:
    """One source's ledger of its shards'."""
    ledger = Ledger("split", source, notes={"documents_cut": 0, "shared_runs": []})
    splits: dict[Split, int] = dict.fromkeys(SPLITS, 0)
    for stretch, result in zip(there, results, strict=True):
        if stretch.source == source:
            part = Ledger.from_dict(result)
            ledger.merge(part)
            ledger.notes["documents_cut"] += part.notes["documents_cut"]
            ledger.notes["shared_runs"].extend(part.notes["shared_runs"])
            if "repeated_spans" in part.notes:
                note = ledger.notes.setdefault("repeated_spans", blank_note())
                merge_note(note, part.notes["repeated_spans"])
            for name in SPLITS:
                splits[name] += part.notes["splits"][name]
    del ledger.notes["shared_runs"][RUNS_SHOWN:]
    ledger.notes["splits"] = splits
    return ledger


def _gather(folders: list[Path], folder: Path, made: set[Split]) -> None:
    """The shards of one source: as they are, but made splits, a crumb a shard, written anew."""
    paths = [path for part in folders for path in sorted(part.glob("*.parquet"))]
    link_shards((path for path in paths if split_of(path) not in made), folder)
    with Writer(folder) as writer:
        for path in paths:
            if split_of(path) in made:
                for document in read_shard(path):
                    writer.add(document)


def _sizes(there: list[Stretch]) -> list[int]:
    return [Path(stretch.path).stat().st_size for stretch in there]


def _check_some_left(ledger: Ledger, trains: bool) -> None:
    splits = ledger.notes["splits"]
    if not (splits["train"] if trains else sum(splits.values())):
        raise UserError(
            f"no {'training ' if trains else ''}document is left: {summary(ledger)}",
            where=f"sources.{ledger.source}",
            hint="data/*/ledger.json tell what each stage dropped, and why",
            exit_code=BAD_DATA,
        )


if __name__ == "__main__":
    stage.main(split)
