"""Servers of others answer with what we export and register, in the text that we would give."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from model.sampling import SamplingOptions
from tasks.release.sampler import Sampler
from tests.release_workspace import make_workspace, write_export

PROMPT = "A small finished "
GREEDY = SamplingOptions(max_new_tokens=8, temperature=0.0)
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose second phase is exported, and registered as demo@champion."""
    from tasks.registry.register import register

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        workspace, recipe = make_workspace(tmp_path_factory.mktemp("serving"))
        write_export(workspace, recipe, "phase2", init_std=0.2)
        register(workspace, recipe)
    return workspace.root


@pytest.fixture(scope="module")
def sampler(root: Path) -> Sampler:
    return Sampler.open(root / "exports/phase2")


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@dataclass
class Server:
    """A server of somebody else, started; its address answers when it is ready."""

    process: subprocess.Popen[bytes]
    url: str
    alive: str
    log: Path

    def ready(self) -> str:
        """Its address, when it answers."""
        deadline = time.monotonic() + 120
        while not answers(self.url + self.alive):
            said = f"of {self.process.args}:\n{self.log.read_text()[-3000:]}"
            assert self.process.poll() is None, f"the end {said}"
            assert time.monotonic() < deadline, f"no answer {said}"
            time.sleep(0.1)
        return self.url


@contextmanager
def started(command: list[str], alive: str, log: Path, **environment: str) -> Iterator[Server]:
    """A server on a free port of localhost; none of its processes outlives the block."""
    port = free_port()
    where = ["--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, *where], stdout=out, stderr=subprocess.STDOUT, env=variables,
            cwd=log.parent, start_new_session=True,
        )  # fmt: skip
    try:
        yield Server(process, f"http://127.0.0.1:{port}", alive, log)
    finally:
        end_group(process)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask all processes of the group to end, then make them."""
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, wanted if process.poll() is None else signal.SIGKILL)
            except ProcessLookupError:
                return
            time.sleep(0.1)
    raise AssertionError("a process of the server does not end")


@pytest.fixture(scope="module")
def servers(root: Path) -> Iterator[dict[str, Server]]:
    """Every server that is installed, started at once: each takes its time to import."""
    uri = f"sqlite:///{root / 'mlflow.db'}"
    mlflow = [str(BIN / "mlflow"), "models", "serve", "-m", "models:/demo@champion"]
    transformers = [str(BIN / "transformers"), "serve", str(root / "exports/phase2")]
    with ExitStack() as stack:
        found = {
            "mlflow": stack.enter_context(
                started(
                    [*mlflow, "--env-manager", "local"], "/ping", root / "mlflow.log",
                    MLFLOW_TRACKING_URI=uri, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
                )
            )
        }  # fmt: skip
        if not missing():
            found["transformers"] = stack.enter_context(
                started([*transformers, "--device", "cpu"], "/health", root / "transformers.log")
            )
        yield found


def missing() -> str | None:
    """What is not installed of what `transformers serve` and its client need."""
    if not all(find_spec(name) for name in ("openai", "transformers")):
        return "openai or transformers is not installed"
    from transformers.utils.import_utils import is_serve_available

    return None if is_serve_available() else "transformers lacks its extra `serving`"


# mlflow models serve


@pytest.fixture(scope="module")
def mlflow_url(servers: dict[str, Server]) -> str:
    """`mlflow models serve` of the registered model."""
    return servers["mlflow"].ready()


def invoke(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_mlflow_serves_the_registered_model_and_its_texts_are_ours(
    mlflow_url: str, sampler: Sampler
) -> None:
    greedy = {"max_new_tokens": 8, "temperature": 0.0}
    status, reply = invoke(mlflow_url, {"inputs": [PROMPT, ""], "params": greedy})
    assert status == 200
    assert reply == {"predictions": [sampler.complete(p, GREEDY).text for p in (PROMPT, "")]}
    drawn = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "seed": 7}
    replies = [invoke(mlflow_url, {"inputs": [PROMPT], "params": drawn})[1] for _ in range(2)]
    ours = sampler.complete(PROMPT, SamplingOptions(max_new_tokens=8, seed=7)).text
    assert replies == [{"predictions": [ours]}] * 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"inputs": PROMPT}, "Expected list, but got str"),
        ({"inputs": [PROMPT], "params": {"max_new_tokens": "many"}}, "max_new_tokens"),
        ({"inputs": [PROMPT], "params": {"top_p": 3.0}}, "top_p must be a finite number"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why_by_mlflow(
    mlflow_url: str, body: dict[str, Any], says: str
) -> None:
    status, reply = invoke(mlflow_url, body)
    assert status == 400 and says in json.dumps(reply)


# transformers serve


@pytest.fixture(scope="module")
def model(root: Path) -> str:
    return str(root / "exports/phase2")


@pytest.fixture(scope="module")
def client(servers: dict[str, Server]) -> Any:
    """OpenAI's own client of `transformers serve`."""
    if lacking := missing():
        pytest.skip(lacking)
    from openai import OpenAI

    url = servers["transformers"].ready()
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def test_openais_client_completes_a_text_as_we_do(
    client: Any, model: str, sampler: Sampler
) -> None:
    done = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0)
    ours = sampler.complete(PROMPT, GREEDY)
    assert done.choices[0].text == ours.text and ours.text
    assert done.choices[0].finish_reason == "length"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ours.prompt_ids), 8)


def test_openais_client_streams_the_same_text(client: Any, model: str, sampler: Sampler) -> None:
    chunks = list(
        client.completions.create(
            model=model, prompt=PROMPT, max_tokens=8, temperature=0, stream=True
        )
    )
    ours = sampler.complete(PROMPT, GREEDY).text
    assert "".join(one.choices[0].text for one in chunks) == ours.rstrip("\ufffd")
    assert len(chunks) > 2 and chunks[-1].choices[0].finish_reason == "length"


def test_messages_are_continued_as_a_plain_chat_would_be(
    client: Any, model: str, sampler: Sampler
) -> None:
    from tasks.cli.transcript import Template, Transcript, Turn

    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "workspace."},
        {"role": "user", "content": "The tests"},
    ]
    chat = Transcript(Template.of("plain"))
    chat.turns = [Turn(PROMPT, ["workspace."]), Turn("The tests", [""])]
    ours = sampler.complete(chat.text(0), GREEDY)
    asked = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
    done = client.chat.completions.create(**asked)
    assert done.choices[0].message.content == ours.text
    assert done.usage.prompt_tokens == len(ours.prompt_ids)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = "".join(one.choices[0].delta.content or "" for one in chunks)
    assert streamed == ours.text.rstrip("\ufffd")  # half a character is not sent


def test_a_server_of_one_model_names_it_when_asked_for_another(client: Any, model: str) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="gpt-4", prompt=PROMPT)
    assert refused.value.response.json()["detail"].startswith(f"Server is pinned to '{model}'")
