"""Stage `report`: what was made, from which text, and how good it is, on one page.

    registration, evaluation/, metrics/, ledgers, mixes
        -> reports/report.json   all of it as one dictionary, which the two below are drawn from
        -> reports/report.html   one file, no network: to read, to send, to print
        -> reports/report.md     the same figures, to diff and to paste
        -> reports/curves.csv    every logged step of every phase, for a spreadsheet

Every figure is read from a file that a stage wrote; nothing is measured here.
"""

from __future__ import annotations

from tasks import stage
from tasks.files import read_json, write_json, write_text
from tasks.recipe import Recipe
from tasks.report.curves import curves_csv, read_all
from tasks.workspace import Workspace


def report(workspace: Workspace, recipe: Recipe) -> None:
    """Write reports/report.json, report.html, report.md and curves.csv.

    Raises UserError naming the file of an earlier stage that is missing or broken.
    """
    from tasks.registry.tracking import share_report
    from tasks.report.facts import gather
    from tasks.report.markdown import markdown
    from tasks.report.page import page
    from tasks.report.words import verdict

    histories = read_all(workspace, recipe)
    facts = gather(workspace, recipe, histories, read_json(workspace.registration))
    write_json(workspace.report / "report.json", facts)
    write_text(workspace.report / "report.html", page(facts))
    write_text(workspace.report / "report.md", markdown(facts))
    write_text(workspace.report / "curves.csv", curves_csv(histories))
    print(f"    {verdict(facts)}")
    print(f"    {workspace.report / 'report.html'}")
    share_report(workspace, recipe)


if __name__ == "__main__":
    stage.main(report)
