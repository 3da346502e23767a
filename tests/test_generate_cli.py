"""`phasewise generate`: every flag, every message, and the same text whichever way it is drawn."""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from model.sampling import SamplingOptions
from tasks.cli import main
from tasks.cli.flags import NAMES
from tests.places import ROOT
from tests.release_workspace import make_workspace, write_export

CONTEXT = 64


@dataclass
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def samples(self) -> list[dict]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with random weights; the recipe says temperature 0.7, top_p 0.95."""
    workspace, recipe = make_workspace(tmp_path_factory.mktemp("generate"), tracked=False)
    write_export(workspace, recipe, "phase1")
    return write_export(workspace, recipe, "phase2", init_std=0.2, d_ff=64)


@pytest.fixture
def run(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Run `phasewise generate --model <the model> ...` as the entry point does."""

    def go(*arguments: str, stdin: bytes = b"", model: Path | str = folder) -> Done:
        monkeypatch.setattr(
            sys, "argv", ["phasewise", "generate", "--model", str(model), *arguments]
        )
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(int(end.value.code or 0), out, err)

    return go


def answers(run: Run, *arguments: str, **more: object) -> list[dict]:
    """The samples of a command that must succeed."""
    done = run("--json", *arguments, **more)
    assert done.code == 0, done.err
    return done.samples


# Flags


def test_every_sampling_option_has_a_flag_of_its_name(run: Run) -> None:
    assert set(NAMES) == {field.name for field in fields(SamplingOptions)} - {"eos_ids"}
    help = run("--help").out
    for name in NAMES:
        assert f"--{name.replace('_', '-')} " in help
    for panel in ("Input:", "Output:", "Sampling (default: what the recipe wrote", "Speed:"):
        assert panel in help


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--max-new-tokens", "7"], "max_new_tokens", 7),
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--final-temperature", "0.2"], "final_temperature", 0.2),
        (["--final-temperature", "0.2", "--temperature-power", "2"], "temperature_power", 2.0),
        (["--top-k", "9"], "top_k", 9),
        (["--top-p", "0.4"], "top_p", 0.4),
        (["--min-p", "0.1"], "min_p", 0.1),
        (["--repetition-penalty", "1.3"], "repetition_penalty", 1.3),
        (["--frequency-penalty", "0.2"], "frequency_penalty", 0.2),
        (["--presence-penalty", "-0.2"], "presence_penalty", -0.2),
        (["--no-repeat-ngram-size", "3"], "no_repeat_ngram_size", 3),
        (["--stop", "x", "--stop", "yz"], "stop", ("x", "yz")),
        (["--seed", "12"], "seed", 12),
    ],
)
def test_a_flag_reaches_the_sampling(
    run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str], field: str, value: object
) -> None:
    seen = caught_options(monkeypatch)
    assert run("--prompt", "a", *flags).code == 0
    assert getattr(seen[0], field) == value


def test_what_is_not_given_is_what_the_recipe_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = caught_options(monkeypatch)
    assert run("--prompt", "a", "--top-k", "5").code == 0
    assert (seen[0].temperature, seen[0].top_p, seen[0].max_new_tokens) == (0.7, 0.95, 48)
    assert seen[0].top_k == 5


def test_a_temperature_that_is_given_does_not_move(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"temperature": 1.0, "final_temperature": 0.3}
    monkeypatch.setattr("tasks.release.generation_config.default_sampling", lambda _: model)
    seen = caught_options(monkeypatch)
    for flags in ([], ["--temperature", "0"], ["--temperature", "2", "--final-temperature", "1"]):
        assert run("--prompt", "a", *flags).code == 0
    moves = [(options.temperature, options.final_temperature) for options in seen]
    assert moves == [(1.0, 0.3), (0.0, None), (2.0, 1.0)]


def caught_options(monkeypatch: pytest.MonkeyPatch) -> list[SamplingOptions]:
    """The options of each batch that is drawn, which is drawn all the same."""
    from tasks.release import sampler

    seen: list[SamplingOptions] = []
    drawing = sampler.generate

    def note(network, prompts, options, *rest):
        seen.append(options)
        return drawing(network, prompts, options, *rest)

    monkeypatch.setattr(sampler, "generate", note)
    return seen


# The same text, whichever way it is drawn


def test_a_compiled_step_gives_the_same_text_and_takes_one_sample_at_a_time(run: Run) -> None:
    asked = ["--prompt", "The ", "--prompt", "If ", "--seed", "5", "--max-new-tokens", "6"]
    plain = answers(run, *asked)
    assert answers(run, *asked, "--compile", "--batch-size", "1") == plain
    done = run(*asked, "--compile")
    assert done.code == 2
    assert "--compile: the compiled step reads one row, not 2" in done.err
    assert "--batch-size 1" in done.err


def test_samples_name_the_seed_that_gives_them_again(run: Run) -> None:
    drawn = answers(run, "--prompt", "The ", "--prompt", "If ", "--num-samples", "3", "--seed", "5")
    assert [sample["seed"] for sample in drawn] == [5, 6, 7, 8, 9, 10]
    assert [sample["prompt"] for sample in drawn] == ["The "] * 3 + ["If "] * 3
    assert len({sample["text"] for sample in drawn}) == 6
    for sample in drawn:
        again = answers(run, "--prompt", sample["prompt"], "--seed", str(sample["seed"]))
        assert again == [sample]
    [other] = answers(run, "--prompt", "The ")
    assert answers(run, "--prompt", "The ", "--seed", str(other["seed"])) == [other]


@pytest.mark.parametrize("size", ["1", "2", "5", "100"])
def test_the_batch_size_changes_nothing(run: Run, size: str) -> None:
    prompts = [word for text in ("a", "The whole", "", "import ") for word in ("--prompt", text)]
    flags = [*prompts, "--num-samples", "2", "--seed", "3", "--max-new-tokens", "12"]
    whole = answers(run, *flags)
    assert answers(run, *flags, "--batch-size", size) == whole
    assert len(whole) == 8


@pytest.mark.parametrize("prompt", ["The ", "", "naïve 日本", "x" * 300])
def test_streaming_prints_what_is_printed_otherwise(run: Run, prompt: str) -> None:
    flags = ["--prompt", prompt, "--num-samples", "2", "--seed", "1"]
    whole, streamed = run(*flags), run(*flags, "--stream")
    assert whole.code == 0 and whole.out.startswith("--- 1 of 2, seed 1\n" + prompt)
    assert (streamed.out, streamed.err) == (whole.out, whole.err)


def test_a_streamed_piece_never_ends_inside_a_character(folder: Path) -> None:
    from tasks.release.sampler import Sampler

    sampler = Sampler.open(folder)
    for seed in range(12):
        options = SamplingOptions(max_new_tokens=30, seed=seed, temperature=1.5)
        pieces = sampler.stream("é", options)
        collected = []
        while True:
            try:
                collected.append(next(pieces))
            except StopIteration as end:
                whole = end.value
                break
        assert "".join(collected) == whole.text == sampler.complete("é", options).text
        assert not any(piece.endswith("\ufffd") for piece in collected[:-1])


def test_a_stop_text_ends_a_sample_and_is_its_last_part(run: Run) -> None:
    [free] = answers(run, "--prompt", "The ", "--seed", "2")
    stop = free["text"][4:6]
    [sample] = answers(run, "--prompt", "The ", "--seed", "2", "--stop", stop, "--stop", "no such")
    assert sample["finish"] == "stop" and stop in sample["text"]
    assert free["text"].startswith(sample["text"]) and len(sample["text"]) < len(free["text"])


def test_nothing_varies_between_two_runs_with_a_seed(run: Run) -> None:
    flags = ["--prompt", "The ", "--seed", "4", "--num-samples", "2", "--json"]
    first, second = run(*flags), run(*flags)
    assert first == second and first.err == ""
    assert list(first.samples[0]) == [
        "prompt", "text", "prompt_tokens", "tokens", "finish", "dropped", "seed",
    ]  # fmt: skip


def test_a_terminal_is_shown_signs_and_not_given_control_characters(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    done = run("--prompt", "a\x1b[2Jb\x9bc\td\n", "--max-new-tokens", "1", "--seed", "1")
    assert done.out.startswith("a␛[2Jb\ufffdc\td\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    done = run("--prompt", "a\x1b[2J", "--max-new-tokens", "1", "--seed", "1")
    assert done.out.startswith("a\x1b[2J")


def test_a_stdout_that_is_not_utf_8_does_not_end_the_command(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from tasks.cli import main; main()", "generate", "--stream",
         "--model", str(folder), "--prompt", "naïve 日本", "--max-new-tokens", "2"],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"na?ve ??")


# Prompts


def test_prompts_come_from_a_file_from_stdin_or_from_both_flags(run: Run, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.txt"
    lines.write_bytes(b"\xef\xbb\xbfone \r\n\n  two\n")
    rows = tmp_path / "prompts.jsonl"
    rows.write_text('{"prompt": "one\\nline"}\n\n{"prompt": "", "id": 3}\n')
    few = ("--max-new-tokens", "1")

    def prompts(*arguments: str, stdin: bytes = b"") -> list[str]:
        return [one["prompt"] for one in answers(run, *few, *arguments, stdin=stdin)]

    assert prompts("--prompt-file", str(lines)) == ["one ", "  two"]
    assert prompts("--prompt-file", str(rows)) == ["one\nline", ""]
    assert prompts(stdin="é\nb".encode()) == ["é", "b"]
    assert prompts("--prompt-file", "-", stdin=b"a\n") == ["a"]
    assert prompts("--prompt", "x", "--prompt-file", "-", stdin=b"a\n") == ["x", "a"]
    assert prompts("--prompt", "x", stdin=b"not read") == ["x"]


def test_an_empty_prompt_starts_from_the_end_of_text(run: Run) -> None:
    [sample] = answers(run, "--prompt", "", "--seed", "1")
    assert sample["prompt"] == "" and sample["prompt_tokens"] == 1 and sample["tokens"] > 0


def test_a_prompt_beyond_the_context_says_what_is_kept(run: Run) -> None:
    [sample] = answers(run, "--prompt", "x" * 300, "--max-new-tokens", "10", "--seed", "1")
    kept, dropped = sample["prompt_tokens"], sample["dropped"]
    assert dropped > 0 and kept == CONTEXT - 10
    done = run("--prompt", "x" * 300, "--max-new-tokens", "10", "--seed", "1")
    assert (
        f"note: the prompt has {kept + dropped} tokens, and the context {CONTEXT}: its last {kept} "
        f"were read, the first {dropped} left out" in done.err
    )
    assert run("--prompt", "x", "--seed", "1").err == ""


@pytest.mark.parametrize(
    ("name", "content", "code", "message"),
    [
        ("p.txt", "fermé".encode("latin-1"), 65, "p.txt: not UTF-8 text: byte 0xe9 at 4"),
        ("p.txt", b"\n \n", 2, "no prompt in"),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"prompt": 3}\n',
            65,
            "p.jsonl, line 2: no text under 'prompt'",
        ),
        ("p.jsonl", b"[1]\n", 65, "line 1: no text under 'prompt'"),
        ("p.jsonl", b"plain\n", 65, "p.jsonl, line 1: not valid JSON"),
    ],
)
def test_a_bad_prompt_file_is_explained(
    run: Run, tmp_path: Path, name: str, content: bytes, code: int, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run("--prompt-file", str(tmp_path / name))
    assert done.code == code and message in done.err and "hint: " in done.err


def test_a_prompt_file_that_is_not_there_or_too_large_is_explained(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a\n")
    done = run("--prompt-file", str(tmp_path / "prompt.txt"))
    assert done.code == 66 and "no such file" in done.err and "there are: prompts.txt" in done.err
    assert run("--prompt-file", str(tmp_path)).code == 66
    monkeypatch.setattr("tasks.cli.prompts.MAX_BYTES", 1)
    done = run("--prompt-file", str(tmp_path / "prompts.txt"))
    assert done.code == 65 and "MB of prompts" in done.err


def test_half_a_surrogate_pair_is_no_character(run: Run) -> None:
    done = run("--prompt", "a\udce9")
    assert done.code == 65 and "surrogate" in done.err


# Bad options


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "0.00001"], "use 0 for greedy"),
        (["--temperature", "warm"], "--temperature"),
        (["--top-p", "0"], "top_p"),
        (["--top-p", "1.5"], "top_p"),
        (["--min-p", "2"], "min_p"),
        (["--top-k", "-1"], "top_k"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--no-repeat-ngram-size", "-1"], "no_repeat_ngram_size"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--final-temperature", "-1"], "final_temperature"),
        (["--stop", ""], "stop"),
        (["--seed", "-1"], "seed"),
        (["--dtype", "fp64"], "'fp64'"),
        (["--quantize", "int3"], "'int3'"),
        (["--device", "tpu"], "'tpu'"),
        (["--num-samples", "0"], "--num-samples"),
        (["--batch-size", "0"], "--batch-size"),
        (["--top-kk", "4"], "--top-k"),
        (["--stream", "--json"], "--stream and --json exclude each other"),
        (["--interactive"], "--interactive and --prompt exclude each other"),
        (["--draft-tokens", "3"], "--draft-tokens says nothing without --draft"),
        (["--layer", "0"], "--layer says nothing without --attention"),
        (["--attention", "a.jpg"], "the endings are .png, .svg, .html"),
        (["--attention", "a.pgn"], "did you mean a.png?"),
        (["--attention", "a.png", "--num-samples", "2"], "draws one text, not 2"),
        (["--attention", "a.png", "--layer", "2"], "layer 2 is not one of the model's 2"),
        (["--attention", "a.png", "--head", "7"], "head 7 is not one of the model's 2"),
    ],
)  # fmt: skip
def test_a_bad_option_is_explained(run: Run, flags: list[str], message: str) -> None:
    done = run("--prompt", "a", *flags)
    assert done.code == 2 and message in done.err, done.err
    assert done.out == ""


def test_a_device_that_is_not_there_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = run("--prompt", "a", "--device", "cuda")
    assert done.code == 2
    assert "--device: torch finds no cuda device on this machine" in done.err
    assert run("--prompt", "a", "--device", "cpu").code == 0


def test_a_model_that_is_missing_or_was_changed_is_not_opened(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    done = run("--prompt", "a", model=tmp_path / "none")
    assert done.code == 66 and "there is no folder" in done.err
    changed = tmp_path / "changed"
    shutil.copytree(folder, changed)
    (changed / "generation_config.json").write_text('{"temperature": 0.1}')
    done = run("--prompt", "a", model=changed)
    assert done.code == 65 and "generation_config.json has" in done.err
    monkeypatch.chdir(tmp_path)
    done = run("--prompt", "a", model="models:/demo@champion")
    assert done.code == 66 and "there is no registry" in done.err
    done = run("--prompt", "a", "--draft", str(tmp_path / "none"))
    assert done.code == 66 and "there is no folder" in done.err


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_weights_that_are_not_numbers_are_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, stream: list[str]
) -> None:
    from tasks.release import native

    loading = native.load_export

    def broken(*arguments):
        network = loading(*arguments)
        network.norm.weight.data.fill_(float("nan"))
        return network

    monkeypatch.setattr(native, "load_export", broken)
    done = run("--prompt", "a", *stream)
    assert done.code == 65 and "logits are NaN" in done.err


def test_sampling_that_cannot_be_in_a_model_names_the_file(folder: Path, tmp_path: Path) -> None:
    from tasks.errors import UserError
    from tasks.release.generation_config import default_sampling

    assert default_sampling(tmp_path) == {}
    path = tmp_path / "generation_config.json"
    path.write_text('{"do_sample": false, "top_k": null, "phasewise": {"stop": ["."]}}')
    assert default_sampling(tmp_path) == {"temperature": 0.0, "stop": (".",)}
    for values in ('{"top_p": 3}', '{"top_k": "many"}', '{"phasewise": {"topp": 1}}', "[]"):
        path.write_text(values)
        with pytest.raises(UserError, match="generation_config.json") as fault:
            default_sampling(tmp_path)
        assert fault.value.exit_code == 65


def test_the_recipes_sampling_comes_back_from_the_export(tmp_path: Path) -> None:
    from tasks.recipe import Sampling
    from tasks.release.generation_config import default_sampling, write_generation_config

    for values in (
        {},
        {"temperature": 0.0, "max_new_tokens": 9},
        {"min_p": 0.1, "top_k": 4, "no_repeat_ngram_size": 3, "frequency_penalty": 0.5},
        {"final_temperature": 0.2, "temperature_power": 3.0, "stop": ["\n\n", "."]},
    ):
        sampling = Sampling(**values)
        write_generation_config(tmp_path, sampling, {"eos_token_id": 0})
        ours, back = SamplingOptions(**sampling.keywords()), default_sampling(tmp_path)
        for field in fields(SamplingOptions):
            expected = getattr(ours, field.name)
            if ours.greedy and field.name == "top_p":
                continue  # transformers warns of it, and greedy decoding does not use it
            found = getattr(SamplingOptions(**back), field.name)
            assert (list(found) if field.name == "stop" else found) == (
                list(expected) if field.name == "stop" else expected
            )


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1e-4},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"frequency_penalty": 101.0},
        {"no_repeat_ngram_size": -1},
        {"final_temperature": -1.0},
        {"final_temperature": 1e-4},
        {"temperature_power": 0.0},
        {"stop": [""]},
    ],
)
def test_a_recipe_refuses_the_sampling_that_the_model_would_refuse(values: dict) -> None:
    from tasks.recipe import Sampling

    with pytest.raises(ValueError):
        SamplingOptions(**values)
    with pytest.raises(ValueError):
        Sampling(**values)


# Speed


def test_the_speed_goes_to_stderr_and_only_when_asked_for(run: Run) -> None:
    flags = ["--prompt", "The whole ", "--prompt", "If", "--seed", "1", "--max-new-tokens", "9"]
    quiet, told = run(*flags), run(*flags, "--speed")
    assert quiet.err == "" and told.out == quiet.out
    tokens = sum(one["tokens"] - 1 for one in answers(run, *flags))
    assert re.fullmatch(
        rf"prompt \d+ tokens, [\d,]+ tokens/s; generated {tokens} tokens, [\d,]+ tokens/s\n",
        told.err,
    )


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """Another model of the same tokenizer, for a draft."""
    return folder.parent / "phase1"


def test_a_draft_changes_the_speed_and_not_the_text(run: Run, small: Path) -> None:
    flags = ["--prompt", "The ", "--prompt", "import os", "--temperature", "0", "--seed", "1"]
    draft = ["--draft", str(small), "--draft-tokens", "3"]
    plain, drafted = answers(run, *flags), answers(run, *flags, *draft)
    assert [one["text"] for one in drafted] == [one["text"] for one in plain]
    assert all(0 <= one["accepted"] <= one["proposed"] for one in drafted)
    assert sum(one["proposed"] for one in drafted) > 0 and "proposed" not in plain[0]
    assert run(*flags, *draft, "--stream").out == run(*flags).out
    told = run(*flags, *draft, "--speed").err
    assert re.search(r"; draft \d+ of \d+ accepted \(\d+%\)\n", told)


def test_a_draft_of_itself_is_always_right(run: Run, folder: Path) -> None:
    [sample] = answers(run, "--prompt", "The ", "--temperature", "0", "--draft", str(folder))
    assert sample["accepted"] == sample["proposed"] > 0


def test_a_draft_with_another_tokenizer_is_refused(run: Run, small: Path, tmp_path: Path) -> None:
    import shutil

    from tasks.release.manifest import seal, verify_export

    other = tmp_path / "other"
    shutil.copytree(small, other)
    facts = {k: v for k, v in verify_export(other).items() if k not in ("version", "files")}
    words = json.loads((other / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]  # as many ids, but they mean other texts
    (other / "tokenizer.json").write_text(json.dumps(words))
    seal(other, facts)
    done = run("--prompt", "a", "--draft", str(other))
    assert done.code == 2 and "--draft: the draft" in done.err and "another tokenizer" in done.err
    assert run("--prompt", "a", model=other).code == 0


@pytest.mark.parametrize(
    "flags", [["--dtype", "bf16"], ["--quantize", "int8"], ["--quantize", "int4"],
              ["--dtype", "bf16", "--quantize", "int8"]],
)  # fmt: skip
def test_smaller_numbers_speak_too(run: Run, flags: list[str]) -> None:
    [sample] = answers(run, "--prompt", "The ", "--seed", "1", *flags)
    assert sample["tokens"] > 0
    assert answers(run, "--prompt", "The ", "--seed", "1", *flags) == [sample]


def test_small_integers_are_for_the_cpu_and_for_tables_that_they_fit(run: Run, small: Path) -> None:
    done = run("--prompt", "a", "--quantize", "int8", "--device", "cuda")
    assert (
        done.code == 2 and "--quantize: quantized weights run on the CPU, not on cuda" in done.err
    )
    done = run("--prompt", "a", "--quantize", "int4", model=small)
    assert done.code == 2 and "48 wide" in done.err and "take int8" in done.err


def test_one_new_token_has_no_speed(run: Run) -> None:
    done = run("--prompt", "The", "--max-new-tokens", "1", "--speed", "--seed", "1")
    assert done.err.endswith("generated 0 tokens\n")


# Interactive


def test_a_session_continues_prompts_and_takes_settings(run: Run) -> None:
    [expected] = answers(run, "--prompt", "The ", "--seed", "3", "--top-k", "4")
    lines = "/set seed 3\n/set top-k 4\nThe \n\n/show\n/help\n/quit\nnot read\n"
    done = run("--interactive", stdin=lines.encode())
    assert done.code == 0
    assert "The " + expected["text"] + "\n" in done.out
    assert "seed = 3\ntop_k = 4\n" in done.out
    shown = dict(re.findall(r"(?m)^  (\w+) +(.+)$", done.out))
    assert (shown["temperature"], shown["top_k"], shown["stop"]) == ("0.7", "4", "none")
    assert set(NAMES) <= set(shown)
    assert "/set NAME VALUE" in done.out and "not read" not in done.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/shwo", "no command /shwo; did you mean /show?"),
        ("/zzz", "no command /zzz; /help tells the commands"),
        ("/set topk 3", "nothing to set is called 'topk'; did you mean top_k?"),
        ("/set zzz 3", "there are: max_new_tokens"),
        ("/set top_k many", "top_k is a whole number, not 'many'"),
        ("/set seed x", "seed is a whole number or none, not 'x'"),
        ("/set top_p 3", "top_p"),
        ("/set temperature none", "temperature is a number, not 'none'"),
        ("/set top_k", "say: /set top_k 0"),
        ('/set stop "a', "do not close"),
    ],
)
def test_a_wrong_line_is_answered_and_the_session_goes_on(
    run: Run, line: str, message: str
) -> None:
    done = run("--interactive", stdin=f"{line}\n/set top_k 3\n".encode())
    assert done.code == 0
    assert message in done.err
    assert "top_k = 3" in done.out


def test_stop_texts_of_a_session_are_typed_in_quotes_or_without(run: Run) -> None:
    lines = '/set stop "\\n"\n/set stop a b\n/set stop none\n/set final_temperature none\n'
    out = run("--interactive", stdin=lines.encode()).out
    assert out.splitlines() == [
        'stop = "\\n"', 'stop = "a b"', "stop = none", "final_temperature = none",
    ]  # fmt: skip


def test_a_slash_after_a_space_is_text(run: Run) -> None:
    done = run("--interactive", "--max-new-tokens", "1", stdin=b" /usr/bin\n")
    assert done.out.startswith("/usr/bin") and "error" not in done.err


def test_ctrl_c_stops_a_continuation_and_not_the_session(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.release.sampler import Sampler

    streaming = Sampler.stream
    interrupted = []

    def stream(self: Sampler, prompt: str, options: SamplingOptions, **more) -> Iterator[str]:
        pieces = streaming(self, prompt, options, **more)
        if not interrupted:
            yield next(pieces)
            interrupted.append(prompt)
            raise KeyboardInterrupt
        return (yield from pieces)

    monkeypatch.setattr(Sampler, "stream", stream)
    lines = iter([*"ab", KeyboardInterrupt(), "The "])

    def type_line(_: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", type_line)
    done = run("--interactive", "--seed", "3", "--max-new-tokens", "4", "--speed")
    assert done.code == 0 and interrupted == ["a"]
    assert "[stopped]" in done.err and "Ctrl-D or /quit leaves" in done.err
    assert done.err.count("tokens/s; generated") == 2
    [expected] = answers(run, "--prompt", "The ", "--seed", "3", "--max-new-tokens", "4")
    assert done.out.endswith("The " + expected["text"] + "\n")


# Attention


@pytest.mark.parametrize("name", ["map.png", "map.svg", "map.html"])
def test_attention_is_drawn_into_a_file(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    flags = ["--prompt", "The ", "--seed", "1", "--max-new-tokens", "5", "--layer", "1"]
    done = run(*flags, "--attention", str(path))
    assert done.code == 0 and done.err == f"attention: {path}\n"
    content = path.read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}
    assert content.startswith(starts[path.suffix])
    if path.suffix != ".png":
        for text in ("layer 1, head 0", "layer 1, head 1", "Attention of phase2"):
            assert text in content.decode()
        assert "layer 0" not in content.decode()
    assert run(*flags, "--stream", "--attention", str(path)).code == 0
    assert path.read_bytes() == content


def test_attention_of_a_full_context_leaves_out_what_was_not_read(run: Run, tmp_path: Path) -> None:
    flags = ["--prompt", "x" * 300, "--seed", "1", "--attention", str(tmp_path / "map.svg")]
    assert run(*flags).code == 0
    assert f"{CONTEXT} tokens" in (tmp_path / "map.svg").read_text()
    done = run("--prompt", "a", "--attention", str(tmp_path / "no/map.svg"))
    assert done.code == 66 and "there is no folder" in done.err
