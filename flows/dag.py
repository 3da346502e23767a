"""The order of the stages, as DVC reads it from dvc.yaml. No order is written here.

A stage has an address: its name in dvc.yaml and, where there is one for each source or phase, which
one: ``dedup``, ``train@phase2``. A target is an address, or a name that stands for all of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import recipe
from tasks.errors import BAD_DATA, BUSY, NO_INPUT, USAGE, UserError, nearest
from tasks.files import alive


@dataclass(frozen=True)
class Dag:
    """Stages by address, in the order in which DVC would run them; each knows what it stands on."""

    graph: Any  # networkx.DiGraph: address -> the addresses it depends on

    @property
    def stages(self) -> list[str]:
        """Every stage, upstream first."""
        return self._plan(None)

    def names(self, stage: str) -> list[str]:
        """What a stage of dvc.yaml stands for, e.g. the phases of ``train``."""
        return [a.removeprefix(f"{stage}@") for a in self.stages if a.startswith(f"{stage}@")]

    def address(self, stage: str, name: str) -> str:
        """The address of one phase or source. Raises UserError that lists those there are."""
        if name in (names := self.names(stage)):
            return f"{stage}@{name}"
        kind = "phase" if stage == "train" else "name"
        guess = nearest(name, names)
        raise UserError(
            f"the recipe has no {kind} {name!r}",
            where="params.yaml",
            hint=(f"did you mean {guess!r}? " if guess else "") + f"it has: {', '.join(names)}",
            exit_code=USAGE,
        )

    def expand(self, targets: Iterable[str]) -> list[str]:
        """The addresses that targets stand for."""
        expanded: list[str] = []
        for target in targets:
            found = [a for a in self.stages if a == target or a.startswith(f"{target}@")]
            if not found:
                guess = nearest(target, self.stages)
                raise UserError(
                    f"no stage {target!r}",
                    where="dvc.yaml",
                    hint=f"did you mean {guess!r}?" if guess else "`dvc stage list` shows all",
                )
            expanded += found
        return expanded

    def up_to(self, *targets: str) -> list[str]:
        """The targets and all they stand on, upstream first."""
        return self._plan(self.expand(targets))

    def after(self, *targets: str) -> list[str]:
        """All that stands on the targets, without them, upstream first."""
        from networkx import ancestors

        chosen = self.expand(targets)
        downstream = set().union(*(ancestors(self.graph, address) for address in chosen))
        return [address for address in self.stages if address in downstream - set(chosen)]

    def _plan(self, addresses: list[str] | None) -> list[str]:
        from dvc.repo.reproduce import plan_repro

        return plan_repro(self.graph, addresses)


def load() -> Dag:
    """Ask DVC for the DAG of the dvc.yaml in the current folder.

    Raises UserError where there is none, or where DVC cannot read it.
    """
    from dvc.repo.reproduce import get_active_graph
    from networkx import relabel_nodes

    with _repository() as repository:
        graph = get_active_graph(repository.index.graph)
        return Dag(relabel_nodes(graph, {stage: stage.addressing for stage in graph}))


def stale(addresses: Iterable[str]) -> list[str]:
    """Which of the stages DVC would run again, in the order given (see ``dvc status``).

    Raises UserError (exit code 75) where another process is running one of them.
    """
    addresses = list(addresses)
    with _repository() as repository:
        changed = repository.status(targets=addresses) if addresses else {}
    return [address for address in addresses if address in changed]


def at_work() -> list[int]:
    """The processes that run a stage here now, by DVC's own notes (.dvc/tmp/rwlock).

    Raises UserError (exit code 75) where DVC is writing the notes just now.
    """
    with _repository() as repository:
        path = Path(repository.tmp_dir) / "rwlock"
        try:
            held = json.loads(path.read_bytes()) if path.is_file() else {}
        except json.JSONDecodeError:
            raise UserError("DVC is beginning or ending a stage", exit_code=BUSY) from None
    entries = [entry for part in held.values() for entry in part.values()]
    owners = [o for entry in entries for o in (entry if isinstance(entry, list) else [entry])]
    return sorted({owner["pid"] for owner in owners if alive(owner["pid"])})


@contextmanager
def _repository() -> Iterator[Any]:
    """DVC's view of the current folder; its errors as words."""
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo

    root = Path.cwd()
    if not (root / "dvc.yaml").is_file():
        raise UserError(
            f"no dvc.yaml in {root}",
            hint="run this from the folder of params.yaml and dvc.yaml",
            exit_code=NO_INPUT,
        )
    try:
        with Repo(str(root), _wait_for_lock=True) as repository:
            yield repository
    except NotDvcRepoError:
        raise UserError(
            f"{root} is not a DVC project",
            hint="`git init && dvc init` makes it one",
            exit_code=NO_INPUT,
        ) from None
    except LockError as error:
        raise UserError(str(error), hint="wait for it, or stop it", exit_code=BUSY) from None
    except DvcException as error:
        recipe.load(root / "params.yaml")  # a fault of the recipe is told better by its schema
        raise UserError(_words(error), where="dvc.yaml", exit_code=BAD_DATA) from None


def _words(error: BaseException | None) -> str:
    """What DVC says, with its causes."""
    parts: list[str] = []
    while error is not None:
        parts.append(str(error).strip())
        error = error.__cause__
    return ": ".join(part for part in parts if part)
