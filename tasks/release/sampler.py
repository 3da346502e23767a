"""Text in, text out: an exported folder with its tokenizer, ready to continue prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from model.sampling import SamplingOptions


@dataclass(frozen=True)
class Sample:
    """One continuation. ``finish`` says why it ended; ``dropped`` counts prompt tokens left out."""

    prompt: str
    text: str
    tokens: int
    finish: str
    dropped: int


class Sampler:
    """A model and its tokenizer from an exported folder (verified by its manifest)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from tasks.release.manifest import verify_export
        from tasks.release.native import load_export
        from tasks.tokens.text import load_tokenizer

        verify_export(folder)
        self.tokenizer = load_tokenizer(folder)
        self.model = load_export(folder, device)

    def complete(self, prompt: str, options: SamplingOptions) -> Sample:
        """Continue one prompt; an empty one starts from the end-of-text token."""
        from model.generate import generate

        [done] = generate(self.model, [self._encode(prompt)], self._options(options))
        text = self.tokenizer.continuation(done.prompt, done.ids)
        return Sample(prompt, text, len(done.ids), done.finish, done.dropped)

    def stream(self, prompt: str, options: SamplingOptions) -> Iterator[str]:
        """Pieces of the continuation as they come; a piece never ends inside a character."""
        from model.generate import stream

        ids = self._encode(prompt)
        new: list[int] = []
        shown = ""
        for token in stream(self.model, ids, self._options(options)):
            new.append(token)
            text = self.tokenizer.continuation(ids, new)
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text

    def _encode(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]

    def _options(self, options: SamplingOptions) -> SamplingOptions:
        return replace(options, eos_ids=(self.tokenizer.eos_id,))
