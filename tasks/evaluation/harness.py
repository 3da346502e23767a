"""An exported model as lm-evaluation-harness sees one: log-likelihoods of texts, and continuations.

    request (context, continuation) -> ids, cut on the left to the context -> batches, longest first
        -> sum of the continuation's log-probabilities, and whether each was the likeliest id

The network is ours and not transformers', so that every export runs, those too for which there is
no class there, and none of the code beside it. The figures are those of the harness's own `hf`
model where both open an export (tests/test_evaluation_benchmarks.py): rows are padded on the right,
where no token looks, and an empty context is the EOS that stands before every document.

This module needs lm-eval, and is imported where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM

from model.sampling import SamplingOptions
from tasks.errors import NON_FINITE, UserError
from tasks.progress import progress
from tasks.release.sampler import Sampler
from tasks.tokens.rows import IGNORED

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Pair = tuple[list[int], list[int]]
MAX_NEW_TOKENS = 256  # the harness's own, where a task says nothing


class HarnessModel(TemplateLM):
    """A network and its tokenizer as an `lm_eval.api.model.LM`; fp32 unless opened otherwise."""

    def __init__(self, sampler: Sampler, batch_size: int = 16) -> None:
        super().__init__()
        self.sampler, self.batch_size = sampler, batch_size
        self.network, self._words = sampler.network.eval(), sampler.tokenizer
        self._device = self.network.device

    @property
    def eot_token_id(self) -> int:
        return self._words.eos_id

    @property
    def max_length(self) -> int:
        return self.network.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        return self._words.fingerprint

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Ids of a text; none is put before it, as none was in training."""
        return self._words.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """For each (context, continuation): nats of the continuation, and whether it is greedy."""
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Nats of each text alone after an EOS, in windows of the context that do not overlap."""
        pairs: list[Pair] = []
        owners = []
        for number, request in enumerate(requests):
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            made = [utils.make_disjoint_window(window) for window in windows]
            pairs += made
            owners += [number] * len(made)
        sums = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._score(pairs), strict=True):
            sums[owner] += nats
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """A continuation of each context up to the first text of `until`, which is left out.

        Greedy where `do_sample` is not set. A context that leaves no room is cut on the left.
        """
        found = [""] * len(requests)
        for asked, numbers in _alike([request.args[1] for request in requests]):
            until = _texts(asked.get("until"))
            options = SamplingOptions(
                max_new_tokens=int(asked.get("max_gen_toks", MAX_NEW_TOKENS)),
                temperature=float(asked.get("temperature", 1.0)) if asked.get("do_sample") else 0.0,
                top_p=float(asked.get("top_p") or 1.0),
                top_k=int(asked.get("top_k") or 0),
                stop=tuple(until),
                seed=0,
            )
            contexts = [requests[number].args[0] for number in numbers]
            with progress(len(numbers), "requests", "continuing") as shown:
                drawn = self.sampler.sample(contexts, options, self.batch_size)
                for number, sample in zip(numbers, drawn, strict=True):
                    found[number] = _before(sample.text, until)
                    shown.advance(1)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(context, continuation) for _, context, continuation in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context, and whether all its ids were the likeliest.

        Longest first, so that rows of a batch are about as long as each other. Of a continuation
        longer than the context the last tokens count, as many as fit.
        """
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda n: -len(pairs[n][0]) - len(pairs[n][1]))
        with progress(len(pairs), "requests", "scoring") as shown:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                inputs, targets = self._rows([pairs[number] for number in batch])
                losses, hits = self.network.score(inputs, targets)
                scored = targets != IGNORED
                sums = losses.double().sum(dim=1).tolist()
                greedy = (hits | ~scored).all(dim=1).tolist()
                if not all(map(math.isfinite, sums)):
                    raise UserError(
                        "the model's log-likelihoods are not finite: its weights are broken",
                        exit_code=NON_FINITE,
                    )
                for number, nats, all_likeliest in zip(batch, sums, greedy, strict=True):
                    found[number] = (-nats, all_likeliest)
                shown.advance(len(batch))
        return found

    def _rows(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets (B, T): the last ids that fit, and the continuation's as targets."""
        cut = [((before + after)[-(self.max_length + 1) :], len(after)) for before, after in pairs]
        width = max(len(ids) for ids, _ in cut) - 1
        inputs = torch.full((len(cut), width), self.eot_token_id)
        targets = torch.full((len(cut), width), IGNORED)
        for row, (ids, count) in enumerate(cut):
            count = min(count, len(ids) - 1)
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, len(ids) - 1 - count : len(ids) - 1] = torch.tensor(
                ids[len(ids) - count :]
            )
        return inputs.to(self._device), targets.to(self._device)


def _alike(asked: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Requests that are asked for in the same way, by number."""
    groups: dict[str, list[int]] = {}
    for number, options in enumerate(asked):
        groups.setdefault(repr(sorted(options.items(), key=str)), []).append(number)
    for numbers in groups.values():
        yield asked[numbers[0]], numbers


def _texts(until: str | Sequence[str] | None) -> list[str]:
    return [until] if isinstance(until, str) else [text for text in until or [] if text]


def _before(text: str, until: Sequence[str]) -> str:
    """A text as far as the first of some endings."""
    return text[: min([text.find(end) for end in until if end in text], default=len(text))]
