"""Where every file lives, relative to the folder of params.yaml. No other module builds a path.

data/raw/<source>/         as downloaded, one row a document, with provenance
data/clean/<source>/       after the cleaning profile
data/dedup/                which documents stay, which go, and why
data/documents/<source>/   train, validation and test documents
data/tokenizer/            the tokenizer, in the files AutoTokenizer opens
data/tokens/<source>/      flat shards of token ids
data/mix/<phase>/          which shards a phase draws from and how often (mix.json), packings
data/.work/<stage>/        parts of an unfinished data stage; gone when it ends well
runs/<phase>/              running checkpoints: outside DVC, so that nothing deletes them
checkpoints/<phase>/       a finished phase, whole
metrics/<phase>.*          what training logged
exports/<phase>/           the folder that transformers opens
evaluation/<phase>.*       every held-out set, raw and EMA, and what was generated
reports/                   what was registered, and the report to read
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def home(root: Path) -> Path:
    """Where this machine's own files lie (.env, mlflow.db): in ``root``, or in the project.

    DVC runs a queued experiment in ``<project>/.dvc/tmp/exps/<name>``, and deletes that after it.
    """
    root = root.resolve()
    for folder in root.parents:
        if root.is_relative_to(folder / ".dvc/tmp/exps"):
            return folder
    return root


@dataclass(frozen=True)
class Workspace:
    """The layout of one working folder. ``root`` holds params.yaml and dvc.yaml."""

    root: Path

    def raw(self, source: str) -> Path:
        return self.root / "data/raw" / source

    def clean(self, source: str) -> Path:
        return self.root / "data/clean" / source

    @property
    def dedup(self) -> Path:
        return self.root / "data/dedup"

    @property
    def documents(self) -> Path:
        return self.root / "data/documents"

    @property
    def tokenizer(self) -> Path:
        return self.root / "data/tokenizer"

    def tokens(self, source: str) -> Path:
        return self.root / "data/tokens" / source

    def work(self, stage: str, name: str = "") -> Path:
        """Parts of an unfinished stage: outside DVC's outputs, so that nothing deletes them."""
        return self.root / "data/.work" / (f"{stage}@{name}" if name else stage)

    def mix(self, phase: str) -> Path:
        """The mix of a phase; its packings lie beside it."""
        return self.root / "data/mix" / phase / "mix.json"

    def run(self, phase: str) -> Path:
        return self.root / "runs" / phase

    def checkpoint(self, phase: str) -> Path:
        """A finished phase; ``checkpoint("init")`` is the untrained model."""
        return self.root / "checkpoints" / phase

    def metrics(self, phase: str) -> Path:
        """The folder of a phase's training record: history.jsonl, curves.csv, summary.json."""
        return self.root / "metrics" / phase

    def export(self, phase: str) -> Path:
        return self.root / "exports" / phase

    def evaluation(self, phase: str, what: str = "json") -> Path:
        """What was measured of a phase: its figures, or what else, such as ``details.json``."""
        return self.root / "evaluation" / f"{phase}.{what}"

    @property
    def benchmarks(self) -> Path:
        """Of the released phase."""
        return self.root / "evaluation/benchmarks.json"

    @property
    def registration(self) -> Path:
        return self.root / "reports/registration.json"

    @property
    def report(self) -> Path:
        return self.root / "reports"
