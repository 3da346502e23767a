"""Stage `report`: what was made, from which text, and how good it is, on one page.

    registration, evaluation/, metrics/, ledgers, mixes
        -> reports/report.html   one file, no network: to read, to send, to print
        -> reports/report.md     the same figures, to diff and to paste
        -> reports/curves.csv    every logged step of every phase, for `dvc plots`

Every figure is read from a file that a stage wrote; nothing is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks import stage
from tasks.errors import NO_INPUT, UserError
from tasks.files import read_json, write_text
from tasks.recipe import Recipe
from tasks.release.account import Account, ledger_summary, read_account
from tasks.release.curves import PhaseHistory, curves_csv, read_all
from tasks.workspace import Workspace

MOST_SETS = 3  # named in one sentence


@dataclass(frozen=True)
class Facts:
    """All that the report says, as the stages wrote it."""

    recipe: Recipe
    registration: dict[str, Any]
    histories: list[PhaseHistory]
    summaries: dict[str, Any]
    evaluations: dict[str, Any]
    details: dict[str, Any]
    account: Account
    parameters: dict[str, int]

    @property
    def released(self) -> dict[str, float]:
        """Bits per byte of the released weights on each test set (validation where none is)."""
        weights = self.registration["weights"]
        scores = {
            name: figures[weights]["bits_per_byte"]
            for name, figures in self.evaluations[self.registration["phase"]].items()
        }
        tests = {name: value for name, value in scores.items() if name.endswith("/test")}
        return tests or scores


def report(workspace: Workspace, recipe: Recipe) -> None:
    """Write reports/report.html, reports/report.md and reports/curves.csv.

    Raises UserError naming the file of an earlier stage that is missing or broken.
    """
    from tasks.release.report_markdown import markdown
    from tasks.release.report_page import page

    facts = gather(workspace, recipe)
    write_text(workspace.report / "report.html", page(facts))
    write_text(workspace.report / "report.md", markdown(facts))
    write_text(workspace.report / "curves.csv", curves_csv(facts.histories))
    print(f"    {verdict(facts)}")
    print(f"    {workspace.report / 'report.html'}")


def gather(workspace: Workspace, recipe: Recipe) -> Facts:
    """Read what the stages wrote."""
    names = recipe.phases_in_order()
    histories = read_all(workspace, recipe)
    for name in names:
        if name not in {history.phase for history in histories}:
            path = workspace.metrics(name) / "history.jsonl"
            raise UserError(f"{path} is missing", exit_code=NO_INPUT)
    return Facts(
        recipe=recipe,
        registration=read_json(workspace.registration),
        histories=histories,
        summaries={name: read_json(workspace.metrics(name) / "summary.json") for name in names},
        evaluations={name: read_json(workspace.evaluation(name)) for name in names},
        details={
            name: read_json(workspace.evaluation(name).with_suffix(".details.json"))
            for name in names
        },
        account=read_account(workspace, recipe),
        parameters=_parameters(workspace, recipe),
    )


def _parameters(workspace: Workspace, recipe: Recipe) -> dict[str, int]:
    """The network's parameters, with the vocabulary that the tokenizer turned out to have."""
    from model import ModelConfig, count_parameters

    size = read_json(workspace.tokenizer / "report.json")["vocab_size"]
    config = ModelConfig.from_dict(recipe.model.to_dict() | {"vocab_size": size})
    counts = count_parameters(config)
    return {
        "total": counts["total"],
        "active": counts["active"],
        "non_embedding": counts["non_embedding"],
    }


def verdict(facts: Facts) -> str:
    """One sentence: what is registered, and how good it is."""
    r, scores = facts.registration, facts.released
    if len(scores) <= MOST_SETS:
        figures = ", ".join(f"{value:.4f} on {name}" for name, value in scores.items())
        figures = figures.replace(" on", " bits per byte on", 1)
    else:
        mean = sum(scores.values()) / len(scores)
        figures = f"{mean:.4f} bits per byte on average of {len(scores)} held-out sets"
    return (
        f"{r['name']} version {r['version']} (@{r['alias']}), the {r['weights'].upper()} weights "
        f"after {r['phase']}: {figures}"
    )


__all__ = ["Facts", "gather", "ledger_summary", "report", "verdict"]

if __name__ == "__main__":
    stage.main(report)
