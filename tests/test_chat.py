"""`phasewise chat`: what is said stands in the text, two models go on side by side, nothing is lost."""

from __future__ import annotations

import builtins
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sampling import SamplingOptions
from tasks.cli import main
from tasks.cli.chat import short_names
from tasks.cli.pieces import Piece, until
from tasks.cli.screen import Screen, in_turn
from tasks.cli.transcript import Template, Transcript, Turn
from tasks.errors import UserError
from tasks.release.sampler import Sampler
from tests.places import ROOT
from tests.release_workspace import make_workspace, write_export, write_tokenizer

CONTEXT = 64
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two exported phases; the second has another tokenizer."""
    workspace, recipe = make_workspace(tmp_path_factory.mktemp("chat"), tracked=False)
    write_export(workspace, recipe, "phase1", init_std=0.2)
    write_tokenizer(workspace.tokenizer, vocab_size=280)
    write_export(workspace, recipe, "phase2", init_std=0.2, max_seq_len=48)
    return workspace.root


@pytest.fixture
def chat(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run `phasewise chat phase1 ...` on lines from a pipe, as the entry point does."""

    def go(*lines: str, flags: str = "--seed 3 --max-new-tokens 8", models: str = "phase1") -> Done:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["phasewise", "chat", *models.split(), *flags.split()])
        stdin = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stdin, "utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert not CODES.search(out + err), "a pipe gets no control codes"
        return Done(int(end.value.code or 0), out, err)

    return go


@pytest.fixture(scope="module")
def sampler(root: Path) -> Sampler:
    return Sampler.open(root / "exports/phase1")


def drawn(sampler: Sampler, text: str, seed: int, tokens: int = 8) -> str:
    options = SamplingOptions(
        max_new_tokens=tokens, temperature=0.7, top_p=0.95, seed=seed
    )  # the recipe's
    return sampler.complete(text, options).text


# What a model reads


def test_each_turn_goes_on_from_all_that_was_said(chat, sampler: Sampler) -> None:
    first = "The " + drawn(sampler, "The ", 3)
    second = first + "\nA list" + drawn(sampler, first + "\nA list", 4)
    done = chat("The ", "A list", "/history")
    assert done.code == 0
    assert done.out == f"{second}\n{second}\n"
    assert "continue text" in done.err


def test_more_retry_undo_and_reset_change_the_text_as_they_say(chat, sampler: Sampler) -> None:
    more = drawn(sampler, "The " + drawn(sampler, "The ", 3), 4)
    retried = drawn(sampler, "The ", 5)
    done = chat("The ", "/more", "/retry", "/history", "/undo", "/history", "A", "/reset", "/undo")
    lines = done.out.splitlines()
    whole = f"The {drawn(sampler, 'The ', 3)}\n{more}\nThe {retried}\nThe {retried}\n"
    assert done.out.startswith(whole + 'taken back: "The "\n\n'), lines
    assert "error: nothing was said yet" in done.err


def test_a_dialogue_ends_where_the_other_would_speak(
    chat, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def stream(self, prompt: str, options: SamplingOptions, **_: object):
        said.append(prompt)
        assert options.stop == ("\nUser:",)
        yield from (" Fine", ".\n", "Us", "e it.\nUse", "r", ": and", " you")
        return self.complete("a", SamplingOptions(max_new_tokens=1, seed=1))

    monkeypatch.setattr(Sampler, "stream", stream)
    done = chat("How?", "So?", flags="--template dialogue")
    assert done.out == " Fine.\nUse it.\n" * 2
    assert said == [
        "User: How?\nAssistant:",
        "User: How?\nAssistant: Fine.\nUse it.\nUser: So?\nAssistant:",
    ]


def test_a_long_chat_loses_its_start_and_says_so_once(chat, sampler: Sampler) -> None:
    text = "x " * 60
    done = chat(text, "y", "z", "/history", flags="--seed 3 --max-new-tokens 20")
    assert done.err.count("left out") == 1
    assert re.search(rf"the context {CONTEXT}: its last {CONTEXT - 20} were read", done.err)
    assert re.search(r"\[\d+ tokens; the context has 64: the first \d+ are not read\]", done.err)
    # however long the text, a reply has as much room as it asks for
    ids = sampler.encode(text)
    assert len(ids) - sampler.too_many(len(ids), 20) == CONTEXT - 20
    assert len(ids) - sampler.too_many(len(ids), 10_000) == CONTEXT // 2
    assert sampler.too_many(CONTEXT // 2, 10_000) == 0


def test_a_line_may_go_on_in_the_next_and_a_slash_may_be_text(chat) -> None:
    done = chat("a\\", "b", " /usr", "/history", flags="--seed 1 --max-new-tokens 1")
    history = done.out.splitlines()
    assert history[:2][0] == "a" and history[1].startswith("b")
    assert any(line.startswith("/usr") for line in history)


# Templates


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.lists(st.text(max_size=9)))
def test_a_transcript_is_its_template_filled_in_turn_by_turn(
    before: str, between: str, after: str, said: list[str]
) -> None:
    if {"{user}", "{model}"} & set(re.findall(r"\{\w+\}", before + between + after)):
        return
    written = f"{before}{{user}}{between}{{model}}{after}"
    if written.count("{user}") != 1 or written.count("{model}") != 1 or "\\n" in written:
        return
    chat = Transcript(Template.of(written))
    chat.turns = [Turn(text, [text[::-1]]) for text in said]
    turns = [before + text + between + text[::-1] for text in said]
    assert chat.text(0) == after.join(turns)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dialog", "did you mean dialogue?"),
        ("{model}{user}", "is no template"),
        ("{user}", "there are plain, dialogue"),
        ("{user}{model}{user}", "is no template"),
    ],
)
def test_what_is_no_template_is_explained(chat, name: str, says: str) -> None:
    done = chat("The", flags=f"--template {name}")
    assert done.code == 2 and says in done.err
    done = chat(f"/template {name}", "/template Q:{user}\\nA:{model}\\n")
    assert done.code == 0 and says in done.err
    assert done.out == 'template = "Q:{user}\\\\nA:{model}\\\\n"\n'


@given(st.lists(st.text("ab\n", max_size=4), max_size=12), st.text("ab\n", min_size=1, max_size=4))
def test_what_is_shown_ends_before_the_stop_and_never_shows_its_beginning(
    texts: list[str], stop: str
) -> None:
    whole = "".join(texts)
    end = whole.find(stop)
    expected = whole if end < 0 else whole[:end]
    shown = ""
    read = ""

    def source() -> Iterator[Piece]:
        nonlocal read
        for text in texts:
            read += text
            yield Piece(text)

    for piece in until(source(), stop):
        shown += piece.text
        assert expected.startswith(shown)
    assert shown == expected
    assert "".join(piece.text for piece in until(map(Piece, texts), None)) == whole


# Two models


def test_two_models_with_tokenizers_of_their_own_each_go_on_from_what_they_said(
    chat, root: Path, sampler: Sampler
) -> None:
    other = Sampler.open(root / "exports/phase2")
    assert other.tokenizer.fingerprint != sampler.tokenizer.fingerprint
    expected = []
    for one in (sampler, other):
        first = "The " + drawn(one, "The ", 3)
        expected.append((first, first + "\nSo " + drawn(one, first + "\nSo ", 4)))
    done = chat("The ", "So ", "/history", models="phase1 phase2")
    (a, aa), (b, bb) = expected
    heads = "--- phase1\n{}\n--- phase2\n{}\n"
    later = heads.format(aa.removeprefix(a + "\n"), bb.removeprefix(b + "\n"))
    assert done.out == heads.format(a, b) + later + heads.format(aa, bb)


def test_models_are_called_by_the_shortest_name_that_tells_them_apart() -> None:
    assert short_names(["exports/a", "models:/demo@champion"]) == ["a", "models:/demo@champion"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert short_names(["x/a", "x/a"]) == ["a (1)", "a (2)"]


def test_streams_take_turns_until_all_have_ended() -> None:
    texts = [iter([Piece("a"), Piece("b"), Piece("c")]), iter([Piece("x")])]
    found = [(number, piece.text) for number, piece in in_turn(texts)]
    assert found == [(0, "a"), (1, "x"), (0, "b"), (0, "c")]


# Files


def test_a_saved_chat_goes_on_as_it_was(chat, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    flags = "--seed 3 --max-new-tokens 8 --template dialogue"
    whole = chat("The ", "/set top_k 5", f"/save {path}", "/history", flags=flags)
    saved = json.loads(path.read_text())
    assert saved["template"] == "dialogue" and saved["sampling"]["top_k"] == 5
    assert [turn["user"] for turn in saved["turns"]] == ["The "]
    again = chat(f"/load {path}", "/history", "/show", f"/save {path}", flags="")
    history = whole.out[whole.out.index("User: ") :]
    assert history in again.out and "loaded: 1 turns" in again.out
    assert "top_k                 5\n" in again.out
    assert json.loads(path.read_text()) == saved
    done = chat(f"/load {path}", models="phase1 phase2", flags="")
    assert "a chat with 1 models, and here 2 answer" in done.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a saved chat"),
        ('{"kind": "phasewise chat", "version": 2}', "version 2"),
        (json.dumps({"kind": "phasewise chat", "version": 1, "template": "plain", "sampling": {},
                     "turns": [{"user": "a", "replies": "b"}]}), "'b' is no list"),
        (json.dumps({"kind": "phasewise chat", "version": 1, "template": "x", "sampling": {},
                     "turns": []}), "'x' is no template"),
        (json.dumps({"kind": "phasewise chat", "version": 1, "template": "plain",
                     "sampling": {"top_p": 7}, "turns": []}), "top_p"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_saved_chat_changes_nothing(
    chat, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    done = chat("The ", f"/load {path}", "/history", f"/save {tmp_path / 'none/chat.json'}")
    assert done.code == 0 and says in done.err
    first = done.out.splitlines()[0]
    assert done.out.count(first) == 2, "the text is as it was"
    assert (tmp_path / "none/chat.json").exists()
    if "phasewise chat" not in content:
        done = chat(f"/save {path}")
        assert "exists and is no saved chat" in done.err and path.read_text() == content


def test_what_ctrl_c_leaves_is_part_of_the_text(
    chat, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    streaming, closed = Sampler.stream, []

    def stream(self, prompt: str, options: SamplingOptions, **more: object):
        if prompt != "The ":
            return (yield from streaming(self, prompt, options, **more))
        try:
            yield "first"
            raise KeyboardInterrupt
        finally:
            closed.append(prompt)

    monkeypatch.setattr(Sampler, "stream", stream)
    done = chat("The ", "/history", "/more", "/history")
    more = drawn(sampler, "The first", 4)
    assert done.code == 0 and "[stopped]" in done.err and closed == ["The "]
    assert done.out == f"The first\nThe first\n{more}\nThe first{more}\n"


# Looking


def test_next_tells_the_models_own_probabilities_and_those_it_draws_with(
    chat, sampler: Sampler
) -> None:
    import torch

    done = chat("The ", "/set top_k 2", "/set temperature 1", "/set top_p 1", "/next 4")
    rows = re.findall(r"(?m)^(\d)  (\S+) +([\d.]+)% +([\d.]+%|-)", done.out)
    ids = sampler.encode("The " + drawn(sampler, "The ", 3))
    with torch.no_grad():
        logits = sampler.network(torch.tensor([ids]))[0, -1]
    best = logits.softmax(-1).topk(4).values.tolist()
    assert [float(row[2]) / 100 for row in rows] == pytest.approx(best, rel=0.01)
    kept = logits.topk(2).values.softmax(-1).tolist()
    assert [float(row[3][:-1]) / 100 for row in rows[:2]] == pytest.approx(kept, rel=0.01)
    assert [row[3] for row in rows[2:]] == ["-", "-"]
    assert f"{sum(best):.1%} of the probability" in done.out


def test_every_token_of_a_reply_is_listed_with_what_it_had_against_it(chat) -> None:
    done = chat(
        "/probs on", "The ", "/probs off", "The ", flags="--temperature 0 --max-new-tokens 6"
    )
    assert "no colours here" in done.out
    rows = re.findall(r"(?m)^(\S+) +([\d.]+%) +(\S+ [\d.]+%  .*)$", done.out)
    assert len(rows) == 6
    for token, share, others in rows:
        assert others.startswith(f"{token} {share}"), "greedy takes the likeliest"


def test_attention_is_drawn_into_a_file_and_into_the_terminal(chat, tmp_path: Path) -> None:
    done = chat(
        "The ", f"/attention {tmp_path / 'map.svg'} 1", "/attention", "/attention 1",
        models="phase1 phase2",
    )  # fmt: skip
    for number in (1, 2):
        picture = (tmp_path / f"map-{number}.svg").read_text()
        assert f"Attention of phase{number}" in picture
        assert "layer 1, head 1" in picture and "layer 0" not in picture
    assert "all layers, mean of the heads" in done.out and "layer 1, mean" in done.out
    assert re.search(r"(?m)^ *T \S$", done.out), "the first token looks at itself alone"


def test_a_map_in_signs_is_even_where_attention_is_even() -> None:
    import torch

    from tasks.release.attention_text import BLOCKS, shaded

    even = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5).unsqueeze(1)
    assert shaded(even, ["a", "bb", "c", "d"], 9) == [" a ░", "bb ░░", " c ░░░", " d ░░░░"]
    assert shaded(even, ["a", "bb", "c", "d"], 2) == ["c ░|░", "d ░|░░"]
    own = torch.eye(4)
    assert shaded(own, list("abcd"), 9)[-1] == "d    ▓"
    assert set("".join(shaded(own, list("    "), 4))) <= set(BLOCKS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nxt", "no command /nxt; did you mean /next?"),
        ("/next many", "k is a whole number"),
        ("/next 0", "k is 1 to 100"),
        ("/undo", "nothing was said yet"),
        ("/retry", "nothing was said yet"),
        ("/undo 3", "/undo takes nothing after it"),
        ("/save", "say: /save FILE"),
        ("/load nowhere.json", "there is no file nowhere.json"),
        ("/probs maybe", "say: /probs on, /probs list or /probs off"),
        ("/attention", "nothing was said yet"),
        ("/attention 'a", "do not close"),
        ("a\udce9", "surrogate"),
    ],
)
def test_a_line_that_cannot_be_done_is_answered_and_the_chat_goes_on(
    chat, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    given = iter([line, "/set top_k 3"])
    monkeypatch.setattr(builtins, "input", lambda _: next(given, None) or stop())
    done = chat()
    assert done.code == 0 and says in done.err
    assert done.out.endswith("top_k = 3\n")


def stop() -> str:
    raise EOFError


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/attention a.jpg", "the endings are .png, .svg, .html"),
        ("/attention nowhere/a.png", "there is no folder nowhere"),
        ("/attention a.png 2", "layer 2 is not one of the model's 2"),
        ("/attention a.png x", "the layer is a whole number"),
        ("/attention 9", "layer 9 is not one of the model's 2"),
        ("/attention a.png b c", "say: /attention [FILE] [LAYER]"),
    ],
)
def test_a_picture_that_cannot_be_is_explained(chat, line: str, says: str) -> None:
    assert says in chat("The ", line).err


def test_a_model_is_named_by_its_phase_or_the_nearest_is_told(chat, root: Path) -> None:
    done = chat(models="phse1")
    assert done.code == 66
    assert "did you mean phase1?" in done.err and "phase1, phase2" in done.err
    assert chat("/quit", models=str(root / "exports/phase1")).code == 0


def test_input_that_is_not_text_ends_the_chat_with_a_reason(
    chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> str:
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid start byte")

    monkeypatch.setattr(builtins, "input", broken)
    done = chat()
    assert done.code == 65 and "stdin: not UTF-8 text" in done.err


def test_a_turn_that_fails_is_taken_back(chat, monkeypatch: pytest.MonkeyPatch) -> None:
    streaming = Sampler.stream

    def failing(self, prompt: str, options: SamplingOptions, **more: object):
        if "bad" in prompt:
            yield "a bit"
            raise UserError("the model is broken")
        return (yield from streaming(self, prompt, options, **more))

    monkeypatch.setattr(Sampler, "stream", failing)
    done = chat("The ", "bad", "/history")
    assert "error: the model is broken" in done.err
    assert "bad" not in done.out.splitlines()[-1]


# In a terminal


class Terminal:
    """`phasewise chat` in a pseudo-terminal of so many columns."""

    def __init__(self, root: Path, columns: int, *arguments: str, **environment: str) -> None:
        self.unread = ""
        code = "from tasks.cli import main; main()"
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.chdir(root)
            variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
            variables |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environment}
            os.execve(sys.executable, [sys.executable, "-c", code, "chat", *arguments], variables)
        self.resize(columns)

    def resize(self, columns: int) -> None:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.handle, termios.TIOCSWINSZ, size)

    def until(self, sign: str, seconds: float = 60) -> str:
        """What is shown up to and with ``sign``, from where the last call ended."""
        deadline = time.monotonic() + seconds
        while sign not in self.unread:
            ready, _, _ = select.select([self.handle], [], [], 0.1)
            assert time.monotonic() < deadline, f"no {sign!r} in {self.unread[-2000:]!r}"
            if ready:
                self.unread += os.read(self.handle, 65536).decode("utf-8", "replace")
        shown, _, self.unread = self.unread.partition(sign)
        return shown + sign

    def line(self, text: str) -> str:
        """Type a line; what is shown until the next prompt, without what was typed."""
        os.write(self.handle, text.encode() + b"\n")
        self.until("\n")
        self.unread = "\n" + self.unread
        return self.until("\n> ")

    def leave(self) -> int:
        """Ctrl-D; the exit code."""
        os.write(self.handle, b"\x04")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.handle)
                return os.waitstatus_to_exitcode(status)
            if select.select([self.handle], [], [], 0.05)[0]:
                try:
                    os.read(self.handle, 65536)
                except OSError:  # the other side has closed: Linux says so with an error
                    time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it does not leave")


def test_a_terminal_shows_two_models_side_by_side_where_it_is_wide_enough(root: Path) -> None:
    terminal = Terminal(root, 100, "phase1", "phase2", "--seed", "3", "--max-new-tokens", "8")
    terminal.until("\n> ")
    shown = CODES.sub("", terminal.line("The "))
    assert re.search(r"--- phase1 +--- phase2", shown)
    terminal.line("/probs on")
    assert re.search(r"\x1b\[3[136]m", terminal.line("Some")), "colours"
    terminal.line("/probs off")
    terminal.resize(60)
    shown = terminal.line("The ")
    assert "--- phase1\r\n" in shown and "--- phase2\r\n" in shown
    assert not re.search(r"\x1b\[3\dm", shown)
    time.sleep(0.5)  # as a person: readline drops what comes while it sets the terminal up
    os.write(terminal.handle, b"\x03")
    terminal.until("Ctrl-D or /quit leaves")
    terminal.until("\n> ")
    assert terminal.leave() == 0


def test_no_color_and_a_dumb_terminal_mean_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert Screen(["a"]).coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Screen(["a"]).coloured
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not Screen(["a"]).coloured
