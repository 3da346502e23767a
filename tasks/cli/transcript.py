"""What was said in a chat, as the one text that a model continues.

A model that was trained on text alone knows no roles: a template writes the turns down, and the
model goes on from there.

    plain       {user}{model}↵                           what is typed and what comes, a turn a line
    dialogue    User: {user}↵Assistant:{model}↵          a reply ends where "User:" would come
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from tasks.errors import BAD_DATA, CANNOT_WRITE, NO_INPUT, UserError, nearest
from tasks.files import read_json, write_json

TEMPLATES = {"plain": "{user}{model}\n", "dialogue": "User: {user}\nAssistant:{model}\n"}
KIND, VERSION = "phasewise chat", 1
_USER, _MODEL = "{user}", "{model}"
T = TypeVar("T")


@dataclass(frozen=True)
class Template:
    """How a turn is written: ``before`` user ``between`` model ``after``."""

    name: str
    before: str
    between: str
    after: str

    @classmethod
    def of(cls, name: str) -> Self:
        """The template of that name, or the one that is written out, in which \\n is a line end.

        Raises UserError for a name that is none, and for a text without {user} before {model}.
        """
        text = TEMPLATES.get(name)
        if text is None:
            text = name.replace("\\n", "\n")
            places = [text.count(_USER) == 1, text.count(_MODEL) == 1]
            if not all(places) or text.index(_USER) > text.index(_MODEL):
                guess = nearest(name, TEMPLATES)
                hint = f"did you mean {guess}? " if guess else ""
                raise UserError(
                    f"{name!r} is no template",
                    hint=f"{hint}there are {', '.join(TEMPLATES)}, or one of your own: "
                    "'Q: {user}\\nA:{model}\\n'",
                )
        before, rest = text.split(_USER)
        return cls(name, before, *rest.split(_MODEL))

    @property
    def stop(self) -> str | None:
        """The text with which the next turn would begin, where the template has one."""
        return (self.after + self.before).rstrip() if self.before.strip() else None

    @property
    def joins(self) -> bool:
        """Whether what the model writes goes on in what was typed."""
        return not self.between


@dataclass
class Turn:
    """What was typed, and what each model wrote after it."""

    user: str
    replies: list[str]


@dataclass
class Transcript:
    """The turns of a chat with so many models; each sees its own replies."""

    template: Template
    models: int = 1
    turns: list[Turn] = field(default_factory=list)

    def open(self, user: str) -> Turn:
        """Begin a turn; returns it."""
        self.turns.append(Turn(user, [""] * self.models))
        return self.turns[-1]

    def text(self, model: int) -> str:
        """What model number ``model`` goes on from: all turns, the last one without its end."""
        t = self.template
        turns = [t.before + one.user + t.between + one.replies[model] for one in self.turns]
        return t.after.join(turns)

    def save(self, path: Path, models: list[str], sampling: dict[str, Any]) -> None:
        """Write it as JSON, with the models' names and the sampling for the record.

        Raises UserError where the file is there and holds something else than a chat, or where it
        cannot be written.
        """
        if path.exists() and not _is_chat(path):
            raise UserError(
                f"{path} exists and is no saved chat",
                hint="choose another name",
                exit_code=CANNOT_WRITE,
            )
        try:
            write_json(
                path,
                {
                    "kind": KIND,
                    "version": VERSION,
                    "models": models,
                    "template": self.template.name,
                    "sampling": sampling,
                    "turns": [asdict(turn) for turn in self.turns],
                },
            )
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {(error.strerror or str(error)).lower()}",
                exit_code=CANNOT_WRITE,
            ) from None

    @classmethod
    def load(cls, path: Path, models: int) -> tuple[Self, dict[str, Any]]:
        """A saved chat with so many models, and the sampling that it was saved with.

        Raises UserError where the file is missing, is no saved chat, or is one with another number
        of models.
        """
        if not path.is_file():
            raise UserError(f"there is no file {path}", exit_code=NO_INPUT)
        saved = read_json(path)
        try:
            if saved["kind"] != KIND or saved["version"] != VERSION:
                raise ValueError(f"kind {saved['kind']!r}, version {saved['version']!r}")
            template, sampling = Template.of(_a(str, saved["template"])), saved["sampling"]
            turns = [
                Turn(_a(str, turn["user"]), [_a(str, one) for one in _a(list, turn["replies"])])
                for turn in _a(list, saved["turns"])
            ]
            _a(dict, sampling)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"not a saved chat: {getattr(error, 'message', None) or repr(error)}",
                where=str(path),
                hint="/save writes one",
                exit_code=BAD_DATA,
            ) from None
        for turn in turns:
            if len(turn.replies) != models:
                raise UserError(
                    f"a chat with {len(turn.replies)} models, and here {models} answer",
                    where=str(path),
                )
        return cls(template, models, turns), sampling


def _is_chat(path: Path) -> bool:
    try:
        saved = read_json(path)
    except UserError:
        return False
    return isinstance(saved, dict) and saved.get("kind") == KIND


def _a(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
