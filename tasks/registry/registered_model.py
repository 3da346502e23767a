"""The registered model as MLflow runs it: prompts in, continuations out. No pickle.

MLflow keeps a copy of this one file beside two folders, and runs it where nothing else of the
project is: so it imports nothing of it.

    export/        config.json, model.safetensors, tokenizer.json: what `phasewise pull` fetches
    architecture/  the code that reads them, imported under a name of its own, so that versions of
                   the model, and any other package called `model`, can live in one process

Each has a manifest, pipeline.json; nothing in them is opened before it was found whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from tokenizers import Tokenizer


class LanguageModel(PythonModel):
    """Continues texts."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read weights, configuration and tokenizer; a GPU is used where there is one.

        Raises ValueError naming a file that is missing, cut short or changed.
        """
        export, architecture = (Path(context.artifacts[k]) for k in ("export", "architecture"))
        verify(export)
        verify(architecture)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with no_bytecode():  # the folder may be the registry's own
            code = import_private(architecture)
            self.generate = importlib.import_module(f"{code}.generate").generate
            self.options = importlib.import_module(f"{code}.sampling").SamplingOptions
            self.network = importlib.import_module(f"{code}.native").load_export(export, device)
        self.tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
        self.tokenizer.encode_special_tokens = True  # a prompt's "<|endoftext|>" is plain text
        self.eos_id = json.loads((export / "config.json").read_text("utf-8"))["eos_token_id"]

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[str],
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """The continuation of each prompt, without the prompt.

        Args:
            params: max_new_tokens, temperature (0: the likeliest token), top_k (0: all), top_p,
                min_p, repetition_penalty, frequency_penalty, presence_penalty,
                no_repeat_ngram_size, seed; what the recipe set of final_temperature,
                temperature_power and stop. Prompt i of a call draws with seed + i.
        """
        options = self.options(eos_ids=(self.eos_id,), **(params or {}))
        encoded = self.tokenizer.encode_batch(list(model_input), add_special_tokens=False)
        prompts = [encoding.ids or [self.eos_id] for encoding in encoded]
        completions = self.generate(self.network, prompts, options, self.tokenizer.decode)
        return [self.continuation(done.prompt, done.ids) for done in completions]

    def continuation(self, prompt: list[int], new: list[int]) -> str:
        """The text of ``new`` as it reads after the prompt: words may join across the seam."""
        before, after = self.tokenizer.decode(prompt), self.tokenizer.decode(prompt + new)
        return str(after[len(before) :] if after.startswith(before) else self.tokenizer.decode(new))


def verify(folder: Path) -> None:
    """Compare the files of ``folder`` with its manifest: sizes and SHA-256.

    Raises ValueError naming the first that is not as it was registered.
    """
    manifest = folder / "pipeline.json"
    try:
        files = json.loads(manifest.read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest} cannot be read ({error!r}): fetch the model again") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{path} is missing or cut short: fetch the model again")
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"{path} was changed: fetch the model again")


@contextlib.contextmanager
def no_bytecode() -> Iterator[None]:
    """Import without writing __pycache__ beside the sources."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def import_private(folder: Path) -> str:
    """Import the package in ``folder`` under a name that no other package has; returns the name."""
    name = "_phasewise_" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return name


mlflow.models.set_model(LanguageModel())
