"""Errors that speak to the user: what is wrong, where, what to do, and an exit code.

Exit codes follow sysexits.h where one fits, so that a scheduler can tell "fix the recipe" from "try
again".
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

USAGE = 2  # the recipe or the command line is wrong: running again cannot help
NON_FINITE = 3  # training met a loss or gradient that is not a number
BAD_DATA = 65  # an input file is there but is not what it should be
NO_INPUT = 66  # an input file, model or phase is missing
UNAVAILABLE = 69  # a service (hub, tracking server) did not answer
INTERNAL = 70  # a fault of ours
CANNOT_WRITE = 73  # no space or no permission
IO_ERROR = 74  # the disk itself failed
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


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_SUCH_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


def from_system(error: OSError, where: object) -> UserError | None:
    """What the system refused, in words; None where that is rather a fault of ours.

    Args:
        where: the folder of the work, for an error that names no file.
    """
    place = str(error.filename or where)
    again = "then run the same command again: what is finished stays"
    if error.errno in _NO_SPACE:
        hint, code = f"make room (`phasewise plan` says how much is needed), {again}", CANNOT_WRITE
    elif error.errno in _REFUSED:
        hint, code = f"give yourself permission, or work in another folder, {again}", CANNOT_WRITE
    elif error.errno in _NO_SUCH_PLACE:
        hint, code = f"move what stands there out of the way, {again}", CANNOT_WRITE
    elif error.errno == errno.EIO:
        hint, code = f"look at the disk (dmesg), {again}", IO_ERROR
    else:
        return None
    return UserError(error.strerror or str(error), where=place, hint=hint, exit_code=code)
