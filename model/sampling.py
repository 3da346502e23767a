"""From logits to the next id: penalties, then temperature, then the cut of unlikely ids, then luck.

    logits (B, V) -> penalties by row -> / temperature -> top-k -> top-p -> min-p
        -> probabilities (B, V) -> ids (B,)

Each step is a function of tensors; a cut id has the logit -inf, and no step cuts all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import number, whole

_CUT = float("-inf")


@dataclass(frozen=True)
class SamplingOptions:
    """How a continuation is drawn and where it ends. The defaults draw from the model as it is.

    max_new_tokens        ids to generate at most
    temperature           logits are divided by it; 0 takes the likeliest id (greedy)
    final_temperature     where the temperature has moved to at the last of max_new_tokens; None =
                          it does not move
    temperature_power     the temperature's way to the final one, see `temperature_at`
    top_k                 keep the k likeliest ids; 0 = all
    top_p                 keep the fewest likeliest ids that hold this probability (nucleus
                          sampling, Holtzman et al., 2020), at least one; 1 = all
    min_p                 keep ids at least this times as likely as the likeliest; 0 = all
    repetition_penalty    logits of ids in the prompt or generated: divided by it where positive,
                          multiplied where negative (Keskar et al., 2019); 1 = none
    frequency_penalty     taken off an id's logit for each time that it was generated
    presence_penalty      taken off an id's logit once it was generated
    no_repeat_ngram_size  no run of so many ids comes twice, prompt included; 0 = off
    eos_ids               ids that end a continuation; they are not part of it
    stop                  texts that end a continuation; they are its last part
    seed                  of the row's own generator; None = another one each time
    draft_tokens          ids that a draft model proposes at a time, where there is one

    Raises ValueError on a value out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    final_temperature: float | None = None
    temperature_power: float = 1.5
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        whole("max_new_tokens", self.max_new_tokens, 1)
        whole("top_k", self.top_k, 0)
        whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        for name in ("temperature", "final_temperature"):
            self._check_temperature(name)
        number("temperature_power", self.temperature_power, 0.0, 100.0, open_low=True)
        whole("draft_tokens", self.draft_tokens, 1, 1024)
        number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        number("min_p", self.min_p, 0.0, 1.0)
        number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, open_low=True)
        number("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        number("presence_penalty", self.presence_penalty, -100.0, 100.0)
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**63 - 1)
        for eos in self.eos_ids:
            whole("an id of eos_ids", eos, 0)
        if isinstance(self.stop, str) or not all(self.stop):
            raise ValueError(f"stop must be a list of texts that are not empty, got {self.stop!r}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest id is taken and nothing is drawn, from the first to the last."""
        return self.temperature == 0.0 and not self.final_temperature

    @property
    def penalizes(self) -> bool:
        """Whether earlier ids change an id's logit."""
        return bool(
            self.repetition_penalty != 1.0
            or self.frequency_penalty
            or self.presence_penalty
            or self.no_repeat_ngram_size
        )

    def temperature_at(self, step: int) -> float:
        """The temperature of new id number `step`, from 0.

        final + (first - final) · (1 - step / (max_new_tokens - 1)) ^ power: with a power above 1
        it falls fast at the start, so that a text is varied where it begins and sure where it ends.
        """
        if self.final_temperature is None or self.max_new_tokens == 1:
            return self.temperature
        left = max(0.0, 1.0 - step / (self.max_new_tokens - 1))
        span = self.temperature - self.final_temperature
        return self.final_temperature + span * left**self.temperature_power

    def _check_temperature(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name == "final_temperature":
            return
        number(name, value, 0.0, 100.0)
        if 0.0 < value < 1e-3:
            raise ValueError(f"{name} {value} is too small to divide by; use 0 for greedy")


def penalize(
    logits: Tensor, prompt: Sequence[int], generated: Sequence[int], options: SamplingOptions
) -> Tensor:
    """One row's logits (V,) after every penalty for the ids that came before."""
    if options.repetition_penalty != 1.0:
        logits = repetition_penalty(logits, [*prompt, *generated], options.repetition_penalty)
    if options.frequency_penalty or options.presence_penalty:
        ids = torch.tensor(generated, dtype=torch.long, device=logits.device)
        counts = torch.bincount(ids, minlength=logits.shape[0])
        logits = logits - options.frequency_penalty * counts
        logits = logits - options.presence_penalty * (counts > 0)
    if options.no_repeat_ngram_size:
        logits = ban_ngrams(logits, [*prompt, *generated], options.no_repeat_ngram_size)
    return logits


def repetition_penalty(logits: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Make `ids` less likely: positive logits (V,) divided, negative ones multiplied."""
    seen = torch.tensor(sorted(set(ids)), dtype=torch.long, device=logits.device)
    before = logits[seen]
    after = torch.where(before > 0, before / penalty, before * penalty)
    return logits.index_copy(0, seen, after)


def ban_ngrams(logits: Tensor, ids: Sequence[int], size: int) -> Tensor:
    """Cut the ids that would end a run of `size` ids that `ids` holds already.

    Where that leaves no id at all, the logits (V,) stay as they are.
    """
    tail = list(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1)
    banned = {ids[i + size - 1] for i in starts if list(ids[i : i + size - 1]) == tail}
    if not banned:
        return logits
    where = torch.tensor(sorted(banned), dtype=torch.long, device=logits.device)
    cut = logits.index_fill(0, where, _CUT)
    return logits if torch.isneginf(cut).all() else cut


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest ids of each row (B, V), exactly k where there are ties."""
    if k >= logits.shape[-1]:
        return logits
    values, ids = logits.topk(k, dim=-1)
    return torch.full_like(logits, _CUT).scatter(-1, ids, values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest ids of each row (B, V) whose probabilities sum to p or more."""
    ordered, ids = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the likeliest, so it stays
    beyond = before >= p
    return logits.masked_fill(beyond.scatter(-1, ids, beyond), _CUT)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the ids of each row (B, V) at least p times as likely as the row's likeliest."""
    probabilities = logits.softmax(dim=-1)
    floor = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < floor, _CUT)


def cut_unlikely(logits: Tensor, options: SamplingOptions, temperature: Tensor | float) -> Tensor:
    """logits (B, V) at the temperature, () or (B, 1), above 0, without the ids that are cut."""
    # Taken off first, so that a small temperature cannot reach infinity.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if options.top_k:
        logits = keep_top_k(logits, options.top_k)
    if options.top_p < 1.0:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p > 0.0:
        logits = keep_min_p(logits, options.min_p)
    return logits


def probabilities(logits: Tensor, options: SamplingOptions, steps: Sequence[int]) -> Tensor:
    """What is drawn from, (B, V), for penalized logits (B, V); row b is at new id `steps[b]`.

    At temperature 0 the likeliest id has probability 1. Rows of NaN stay NaN.
    """
    values = [options.temperature_at(step) for step in steps]
    if len(set(values)) == 1 and values[0] > 0.0:
        return cut_unlikely(logits, options, values[0]).softmax(dim=-1)
    temperature = torch.tensor(values, device=logits.device).unsqueeze(1)
    sure = torch.zeros_like(logits).scatter(1, logits.argmax(dim=1, keepdim=True), 1.0)
    sure = sure.masked_fill(logits.isnan(), float("nan"))
    drawn = cut_unlikely(logits, options, temperature.clamp_min(1e-30)).softmax(dim=-1)
    return torch.where(temperature == 0.0, sure, drawn)


def draw(probability: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """An id of each row (B, V) -> (B,), with one number from the row's generator.

    Where the sum of probabilities first exceeds that number; an id of probability 0 never is. -1
    for a row of NaN: its weights or its input are broken, and any id would be made up.
    """
    sums = probability.cumsum(dim=-1, dtype=torch.float64)
    lots = [
        torch.rand(1, generator=generator, device=probability.device, dtype=torch.float64)
        for generator in generators
    ]
    total = sums[:, -1:]
    ids = torch.searchsorted(sums, torch.stack(lots) * total, right=True).squeeze(1)
    return ids.masked_fill(total.squeeze(1).isnan(), -1)


def pick(
    logits: Tensor,
    options: SamplingOptions,
    generators: Sequence[torch.Generator],
    steps: Sequence[int] | None = None,
) -> Tensor:
    """The next id of each row: penalized logits (B, V) -> (B,). Row b draws from `generators[b]`.

    `steps` counts the new ids that each row has (0 where it is not given). -1 where logits are NaN.
    """
    if options.greedy:
        best, ids = logits.max(dim=-1)
        return ids.masked_fill(best.isnan(), -1)
    return draw(probabilities(logits, options, steps or [0] * len(logits)), generators)
