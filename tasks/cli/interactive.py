"""`phasewise generate --interactive`: a prompt a line, its continuation as it comes, again.

A line that begins with '/' is a command. Ctrl-C stops a continuation, Ctrl-D leaves.
"""

from __future__ import annotations

import contextlib
import json
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from model.sampling import SamplingOptions
from tasks.cli.samples import Printer
from tasks.cli.sampling_flags import NAMES
from tasks.errors import UserError, nearest
from tasks.release.sampler import seeded, shifted

HELP = """A line is a prompt; a space before '/' makes it one too. Commands:
  /show               the sampling in force
  /set NAME VALUE     change it, say: /set top_k 40, /set seed none, /set stop "\\n"
  /help               this
  /quit               leave, as Ctrl-D does
Ctrl-C stops a continuation."""


@dataclass
class Session:
    """The sampling in force, which the commands change."""

    printer: Printer
    options: SamplingOptions
    num_samples: int = 1

    def run(self) -> None:
        """Read and answer lines until /quit or the end of the input."""
        with contextlib.suppress(ImportError):  # not every system has it; input() works without
            import readline  # noqa: F401
        print("A prompt a line; /help tells the commands, Ctrl-D leaves.", file=sys.stderr)
        while True:
            try:
                line = input("> " if sys.stdin.isatty() else "")
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print("\nCtrl-D or /quit leaves", file=sys.stderr)
                continue
            if not line.strip():
                continue
            if not line.startswith("/"):
                self._continue(line.removeprefix(" ") if line.startswith(" /") else line)
            elif not self._command(line):
                return

    def _continue(self, prompt: str) -> None:
        """Print as many continuations as are asked for; Ctrl-C ends them, and not the session."""
        try:
            options = seeded(self.options)
            for number in range(self.num_samples):
                self.printer.stream(prompt, shifted(options, number))
            self.printer.show_speed()
        except KeyboardInterrupt:
            print("\n[stopped]", file=sys.stderr)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)

    def _command(self, line: str) -> bool:
        """Do as told; false: leave."""
        name, _, rest = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], object]] = {
            "set": self._set,
            "show": self._show,
            "help": lambda _: print(HELP),
        }
        if name in ("quit", "exit"):
            return False
        if name not in commands:
            guess = nearest(name, [*commands, "quit"])
            hint = f"did you mean /{guess}?" if guess else "/help tells the commands"
            print(f"error: no command /{name}; {hint}", file=sys.stderr)
            return True
        try:
            commands[name](rest.strip())
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
        return True

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        name = name.replace("-", "_")
        if name not in NAMES:
            guess = nearest(name, NAMES)
            hint = f"did you mean {guess}?" if guess else f"there are: {', '.join(NAMES)}"
            raise UserError(f"nothing to set is called {name!r}; {hint}")
        if not text.strip():
            raise UserError(f"no value for {name}; say: /set {name} {getattr(self.options, name)}")
        self.options = replace(self.options, **{name: parse(name, text.strip())})
        print(f"{name} = {shown(getattr(self.options, name))}")

    def _show(self, _: str) -> None:
        width = max(map(len, NAMES))
        for name in NAMES:
            print(f"  {name:<{width}}  {shown(getattr(self.options, name))}")


def parse(name: str, text: str) -> Any:
    """The value of a setting as it is typed. Raises UserError where it is none.

    ``none`` unsets what can be unset. A stop text may be written in quotes, with \\n in it.
    """
    if name == "stop":
        return () if text == "none" else (_unquoted(text),)
    kind = typing.get_type_hints(SamplingOptions)[name]
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if text == "none" and types.NoneType in kinds:
        return None
    wanted = int if int in kinds else float
    try:
        return wanted(text)
    except ValueError:
        what = "a whole number" if wanted is int else "a number"
        extra = " or none" if types.NoneType in kinds else ""
        raise UserError(f"{name} is {what}{extra}, not {text!r}") from None


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError:
        raise UserError(f"the quotes of {text} do not close") from None


def shown(value: Any) -> str:
    """A setting as `/set` takes it."""
    if value is None or value == ():
        return "none"
    return " ".join(map(json.dumps, value)) if isinstance(value, tuple) else str(value)
