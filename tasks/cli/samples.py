"""Samples on the screen: text for a person, or one JSON object a line for a program.

What is said about a sample (a cut prompt, the speed) goes to stderr: stdout is the samples alone.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from model.sampling import SamplingOptions
from tasks.evaluation.speed import Speed
from tasks.release.sampler import Sample, Sampler

# A terminal obeys control characters, and a model may write any: there they are shown as signs.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_SIGNS |= dict.fromkeys(range(0x7F, 0xA0), 0xFFFD)


@dataclass
class Printer:
    """Prints the ``total`` samples of one command, each under a heading where there are several."""

    sampler: Sampler
    total: int = 1
    as_json: bool = False
    speed: bool = False
    _printed: int = field(default=0, repr=False)

    def sample(self, sample: Sample) -> Sample:
        """Print a whole sample; returns it."""
        if self.as_json:
            record = sample.record(with_draft=self.sampler.draft is not None)
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            self._heading(sample.seed)
            _write(sample.prompt + sample.text + "\n")
        tell_cut(sample, self.sampler.network.config.max_seq_len)
        return sample

    def stream(self, prompt: str, options: SamplingOptions) -> Sample:
        """Print a prompt and its continuation as it comes; returns the sample."""
        assert options.seed is not None
        self._heading(options.seed)
        _write(prompt)
        pieces = self.sampler.stream(prompt, options)
        while True:
            try:
                _write(next(pieces))
            except StopIteration as end:
                sample: Sample = end.value
                break
        _write("\n")
        tell_cut(sample, self.sampler.network.config.max_seq_len)
        return sample

    def show_speed(self) -> None:
        """Tell how fast it was since the last time, if that was asked for."""
        if self.speed:
            print(self.sampler.speed, file=sys.stderr)
            self.sampler.speed = Speed()

    def _heading(self, seed: int) -> None:
        number = self._printed % self.total + 1
        self._printed += 1
        if self.total > 1:
            print(f"--- {number} of {self.total}, seed {seed}")


def tell_cut(sample: Sample, context: int, name: str = "") -> None:
    """Say to stderr which part of a sample's prompt was not read, where there is such a part."""
    if sample.dropped:
        kept = len(sample.prompt_ids)
        print(
            f"note: {name}the prompt has {kept + sample.dropped:,} tokens, and the context "
            f"{context:,}: its last {kept:,} were read, the first {sample.dropped:,} left out",
            file=sys.stderr,
        )


def visible(text: str) -> str:
    """Text as stdout may have it: a terminal gets signs for control characters."""
    return text.translate(_SIGNS) if sys.stdout.isatty() else text


def _write(text: str) -> None:
    print(visible(text), end="", flush=True)
