"""Speculative decoding: a small model proposes ids, the model itself reads them all at once.

    draft:  pending -> q1, x1 ~ q1 -> q2, x2 ~ q2 ... xk
    model:  pending x1 x2 ... xk  in one pass  ->  p1 p2 ... pk p(k+1)
    xi stays with probability min(1, pi(xi) / qi(xi)); the first that does not is drawn anew from
    max(0, pi - qi), and if all stay one more is drawn from p(k+1)

What comes out is distributed as if the model had drawn alone (Leviathan et al., 2023; Chen et al.,
2023). p and q are what is drawn from, after penalties, temperature and cuts, so that holds for all
of these; at temperature 0 both are sure of one id, and the ids are those of the model alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .decoder import Decoder
from .sampling import SamplingOptions, draw, penalize, pick, probabilities


class Row(Protocol):
    """What a continuation must tell of itself."""

    prompt: list[int]
    ids: list[int]
    budget: int
    generator: torch.Generator


class Draft:
    """The model that proposes, with a cache that holds the same tokens as the other's."""

    def __init__(self, decoder: Decoder, rows: int, capacity: int) -> None:
        self.decoder = decoder
        self.cache = decoder.new_cache(rows, capacity)

    def room(self, row: Row, options: SamplingOptions) -> int:
        """How many ids to propose to `row`: none that it could not take or the draft not read."""
        read = len(row.prompt) + len(row.ids)
        beyond = self.decoder.config.max_seq_len - read + 1
        return max(0, min(options.draft_tokens, row.budget - len(row.ids) - 1, beyond))

    @torch.inference_mode()
    def propose(
        self, pending: Tensor, padding: Tensor | None, rows: Sequence[Row], options: SamplingOptions
    ) -> tuple[Tensor, Tensor, list[int]]:
        """Ids (B, k), what each was drawn from (B, k, V), and how many are for each row.

        A row draws only what is its own, so that it draws the same in any company. `pending`
        (B, 1) are the ids that neither cache holds; the last proposals are read too.
        """
        rooms = [self.room(row, options) for row in rows]
        proposals: list[Tensor] = []
        sources: list[Tensor] = []
        ids = pending
        for number in range(max(rooms)):
            logits = self.decoder.read(ids, self.cache, padding)[:, 0]
            before = [row.ids + [int(p[b]) for p in proposals] for b, row in enumerate(rows)]
            lines = [
                penalize(line, row.prompt, past, options)
                for line, row, past in zip(logits, rows, before, strict=True)
            ]
            source = probabilities(torch.stack(lines), options, [len(past) for past in before])
            drawn = torch.zeros(len(rows), dtype=torch.long, device=ids.device)
            mine = [b for b, room in enumerate(rooms) if number < room]
            drawn[mine] = draw(source[mine], [rows[b].generator for b in mine]).clamp_min(0)
            proposals.append(drawn)
            sources.append(source)
            ids = drawn.unsqueeze(1)
        self.decoder.read(ids, self.cache, padding)
        if not proposals:
            empty = pending.new_zeros(len(rows), 0)
            return empty, torch.empty(len(rows), 0, self.decoder.config.vocabulary), rooms
        return torch.stack(proposals, dim=1), torch.stack(sources, dim=1), rooms


@torch.inference_mode()
def judge(
    logits: Tensor, proposed: Sequence[int], sources: Tensor, row: Row, options: SamplingOptions
) -> list[int]:
    """The ids that come next in one row: the proposals that stay, and one of the model's own.

    logits (k + 1, V) of the model after the pending id and each of the k `proposed`, sources
    (k, V) what those were drawn from. The last id is -1 where the logits are NaN.
    """
    ids = list(row.ids)
    for token, line, q in zip(proposed, logits, sources, strict=False):
        p = _distribution(line, row.prompt, ids, options)
        if p.isnan().any():
            return [*ids[len(row.ids) :], -1]
        lot = torch.rand((), generator=row.generator, device=p.device)
        if lot * q[token] >= p[token]:
            left = (p - q).clamp_min(0.0)
            # All zero only where p and q differ by rounding alone.
            left = left if left.any() else p
            return [*ids[len(row.ids) :], int(draw(left.unsqueeze(0), [row.generator]))]
        ids.append(token)
    line = penalize(logits[len(proposed)], row.prompt, ids, options).unsqueeze(0)
    return [*ids[len(row.ids) :], int(pick(line, options, [row.generator], [len(ids)]))]


def _distribution(
    line: Tensor, prompt: Sequence[int], ids: Sequence[int], options: SamplingOptions
) -> Tensor:
    """One row's logits (V,) -> what its next id is drawn from, (V,)."""
    line = penalize(line, prompt, ids, options).unsqueeze(0)
    return probabilities(line, options, [len(ids)])[0]
