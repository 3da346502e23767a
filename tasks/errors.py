"""Errors that speak to the user: what is wrong, where, what to do, and an exit code.

Exit codes follow sysexits.h where one fits, so that a scheduler can tell "fix the recipe" from "try
again".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USAGE = 2  # the recipe or the command line is wrong: running again cannot help
NON_FINITE = 3  # training met a loss or gradient that is not a number
BAD_DATA = 65  # an input file is there but is not what it should be
NO_INPUT = 66  # an input file, model or phase is missing
UNAVAILABLE = 69  # a service (hub, tracking server) did not answer
INTERNAL = 70  # a fault of ours
CANNOT_WRITE = 73  # no space or no permission
BUSY = 75  # somebody else holds it, or the work was interrupted: run the same command again


class UserError(ValueError):
    """A fault that the user can mend. Printed as two lines, never as a traceback.

    Args:
        message: what is wrong, with the value got and the values allowed.
        where: file and key, e.g. ``params.yaml: phases.phase2.lr``.
        hint: what to do next.
        exit_code: one of the constants of this module.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        exit_code: int = USAGE,
    ) -> None:
        super().__init__(message)
        self.message, self.where, self.hint, self.exit_code = message, where, hint, exit_code

    def __str__(self) -> str:
        line = f"{self.where}: {self.message}" if self.where else self.message
        return f"{line}\nhint: {self.hint}" if self.hint else line


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``, or None where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return close[0] if close else None


def unknown_name(kind: str, name: str, known: Iterable[str], **where: str) -> UserError:
    """An error for a name that does not exist: says the nearest one and lists those that do."""
    names = sorted(known)
    guess = nearest(name, names)
    hint = f"did you mean {guess!r}? " if guess else ""
    hint += f"there are: {', '.join(names)}" if names else f"there is no {kind} at all"
    return UserError(f"no {kind} {name!r}", hint=hint, exit_code=NO_INPUT, **where)
