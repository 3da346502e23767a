"""Lines from a person, or from a pipe: a line is said, and one that begins with '/' is a command.

`phasewise chat` remembers what was said; `phasewise generate --interactive` is the same session
where each line begins a new text. Ctrl-C stops a continuation, Ctrl-D leaves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tasks.cli.conversation import Conversation
from tasks.cli.flags import NAMES
from tasks.cli.looking import show_attention, show_drawn, show_next
from tasks.cli.prompt_line import prepare, read_line
from tasks.cli.samples import visible
from tasks.cli.sampling_values import parse, shown
from tasks.cli.screen import LEVELS
from tasks.cli.transcript import Template
from tasks.errors import BAD_DATA, UserError, nearest
from tasks.evaluation.speed import Speed

Command = Callable[[str], object]


@dataclass
class Session:
    """A conversation, and the commands that change and show it."""

    talk: Conversation
    speed: bool = False
    """Whether the speed is told after each continuation."""
    listing: bool = field(default=False, init=False)
    """Whether the tokens of each continuation are listed."""
    left: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        talk = self.talk
        self.commands: dict[str, tuple[str, str, Command]] = {
            "more": ("", "go on with the text", lambda _: self._drawing(talk.more)),
            "retry": ("", "draw the last reply anew", lambda _: self._drawing(talk.retry)),
            "undo": ("", "take the last turn back", self._undo),
            "reset": ("", "forget what was said", lambda _: talk.reset()),
            "history": ("", "the text so far, as the model reads it", self._history),
            "template": ("[T]", "how turns are written: plain, dialogue, your own", self._template),
            "next": ("[K]", "the likeliest next tokens", lambda rest: show_next(talk, rest)),
            "probs": ("on|list|off", "colour tokens by probability, or list them", self._probs),
            "attention": (
                "[FILE] [LAYER]",
                "who looks at whom: .png, .svg, .html, or here",
                lambda rest: show_attention(talk, rest),
            ),
            "set": ("NAME VALUE", "sampling: /set top_k 40, /set seed none", self._set),
            "show": ("", "the sampling in force", self._show),
            "save": ("FILE", "write the chat as JSON", self._save),
            "load": ("FILE", "go on with a saved one", self._load),
            "help": ("", "this", self._help),
            "quit": ("", "leave, as Ctrl-D does", lambda _: self._leave()),
        }

    def run(self) -> None:
        """Read and answer lines until /quit or the end of the input.

        Raises UserError (exit code 65) where the input is not UTF-8.
        """
        print("/help tells the commands, Ctrl-D leaves.", file=sys.stderr)
        prepare([*(f"/{name}" for name in self.commands), *NAMES])
        while not self.left:
            try:
                line = read_line()
            except KeyboardInterrupt:
                print("\nCtrl-D or /quit leaves", file=sys.stderr)
                continue
            except UnicodeDecodeError as error:
                raise UserError(
                    f"not UTF-8 text: {error.reason}", where="stdin", exit_code=BAD_DATA
                ) from None
            if line is None:
                return
            if line.strip():
                self.answer(line)

    def answer(self, line: str) -> None:
        """Do what a line says; what is wrong with it is told."""
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                said = line.removeprefix(" ") if line.startswith(" /") else line
                self._drawing(lambda: self.talk.say(said))
        except KeyboardInterrupt:
            print("[stopped]", file=sys.stderr)
        except ValueError as error:  # UserError is one
            print(f"error: {error}", file=sys.stderr)

    def _drawing(self, draw: Callable[[], object]) -> None:
        draw()
        if self.listing:
            show_drawn(self.talk)
        if self.speed:
            for speaker in self.talk.speakers:
                print(speaker.sampler.speed, file=sys.stderr)
                speaker.sampler.speed = Speed()

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].strip().partition(" ")
        name = "quit" if name == "exit" else name
        if name not in self.commands:
            guess = nearest(name, self.commands)
            hint = f"did you mean /{guess}?" if guess else "/help tells the commands"
            raise UserError(f"no command /{name}; {hint}")
        usage, _, command = self.commands[name]
        if rest.strip() and not usage:
            raise UserError(f"/{name} takes nothing after it")
        if not rest.strip() and usage and not usage.startswith("["):
            raise UserError(f"say: /{name} {usage}")
        command(rest.strip())

    def _undo(self, _: str) -> None:
        turn = self.talk.undo()
        print("taken back: " + json.dumps(turn.user, ensure_ascii=False))

    def _history(self, _: str) -> None:
        for number, speaker in enumerate(self.talk.speakers):
            text, sampler = self.talk.text(number), speaker.sampler
            if len(self.talk.speakers) > 1:
                self.talk.screen.head(speaker.name)
            print(visible(text))
            tokens = len(sampler.encode(text)) if text else 0
            cut = sampler.too_many(tokens, self.talk.options.max_new_tokens)
            room = f"{tokens:,} tokens; the context has {sampler.network.config.max_seq_len:,}"
            print(f"[{room}{f': the first {cut:,} are not read' if cut else ''}]", file=sys.stderr)

    def _template(self, rest: str) -> None:
        if rest:
            self.talk.use(Template.of(rest))
        print(f"template = {json.dumps(self.talk.template.name, ensure_ascii=False)}")

    def _probs(self, rest: str) -> None:
        if rest not in ("on", "list", "off"):
            raise UserError("say: /probs on, /probs list or /probs off")
        coloured = self.talk.screen.coloured
        self.talk.watched = rest != "off"
        self.listing = rest == "list" or (rest == "on" and not coloured)
        if rest == "on" and coloured:
            levels = ", ".join(f"{colour} below {below:.0%}" for below, colour in reversed(LEVELS))
            print(f"probabilities by the model alone: {levels}")
        elif rest == "on":
            print("there are no colours here: tokens will be listed")

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        name = name.replace("-", "_")
        if name not in NAMES:
            guess = nearest(name, NAMES)
            hint = f"did you mean {guess}?" if guess else f"there are: {', '.join(NAMES)}"
            raise UserError(f"nothing to set is called {name!r}; {hint}")
        options = self.talk.options
        if not text.strip():
            raise UserError(f"no value for {name}; say: /set {name} {getattr(options, name)}")
        self.talk.set(replace(options, **{name: parse(name, text.strip())}))
        print(f"{name} = {shown(getattr(self.talk.options, name))}")

    def _show(self, _: str) -> None:
        width = max(map(len, NAMES))
        for name in NAMES:
            print(f"  {name:<{width}}  {shown(getattr(self.talk.options, name))}")

    def _save(self, rest: str) -> None:
        path = Path(rest).expanduser()
        self.talk.save(path)
        print(f"saved: {path}")

    def _load(self, rest: str) -> None:
        self.talk.load(Path(rest).expanduser())
        print(f"loaded: {len(self.talk.turns)} turns, with their template and sampling")

    def _help(self, _: str) -> None:
        what = "A line is continued" if self.talk.template.joins else "A line is a turn"
        print(f"{what}; one that ends in \\ goes on in the next; a space before '/' makes it text.")
        usages = {f"/{name} {usage}": what for name, (usage, what, _) in self.commands.items()}
        width = max(map(len, usages))
        for usage, what in usages.items():
            print(f"  {usage:<{width}}  {what}")
        print("Ctrl-C stops a continuation; what it leaves is part of the text.")

    def _leave(self) -> None:
        self.left = True
