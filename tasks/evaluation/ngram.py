"""The n-gram model that a network is measured against: interpolated modified Kneser-Ney.

    p(w | h) = (c(h w) - D) / c(h) + backoff(h) p(w | h without its first token)

with the discounts D of Chen & Goodman (1999, "An empirical study of smoothing techniques for
language modeling"): three an order, from how many n-grams were seen once, twice, three and four
times. Below the highest order c counts the different tokens seen before an n-gram, and below the
first order stands 1/vocabulary, so that every token has a probability and they sum to 1.

    tokens -> unigrams -> bigrams -> ...    an n-gram is known by the number of its first n-1
                                            tokens and the id of its last: exact in 64 bits

An order is two sorted arrays; to fit and to look up are sorts and binary searches in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

# Where counts of counts give no discounts, as for tiny texts: those that KenLM falls back to
# (Heafield et al. 2013, "Scalable modified Kneser-Ney language model estimation").
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(frozen=True, eq=False)
class Order:
    """The k-grams of one k: ``keys[i]`` is context * vocabulary + token, sorted.

    ``counts`` are of k-grams, ``totals`` (their sums) and ``backoff`` of contexts.
    """

    keys: Ints
    counts: Ints
    discounts: tuple[float, float, float]
    totals: Floats
    backoff: Floats

    @classmethod
    def of(cls, keys: Ints, counts: Ints, contexts: Ints, number: int) -> Order:
        """Discount the counts of k-grams after ``number`` different contexts."""
        chosen = discounts(counts)
        totals = np.bincount(contexts, counts, number).astype(np.float64)
        freed = np.bincount(contexts, np.asarray((0.0, *chosen))[np.minimum(counts, 3)], number)
        # a context that was never followed leaves all to the shorter one
        backoff = np.divide(freed, totals, out=np.ones(number), where=totals > 0)
        return cls(keys, counts, chosen, totals, backoff)

    def mix(self, counts: Ints, contexts: Ints, shorter: Floats) -> Floats:
        """Probabilities of tokens with these counts after these contexts, -1 for an unknown one."""
        known = contexts >= 0
        context = np.where(known, contexts, 0)
        total, backoff = self.totals[context], self.backoff[context]
        kept = counts - np.asarray((0.0, *self.discounts))[np.minimum(counts, 3)]
        seen = np.divide(kept, total, out=np.zeros(len(kept)), where=total > 0)
        return np.where(known, seen + backoff * shorter, shorter)


@dataclass(frozen=True, eq=False)
class Ngram:
    """A fitted model over ids below ``vocab_size``."""

    vocab_size: int
    eos_id: int
    orders: list[Order]

    @classmethod
    def fit(cls, tokens: Ints, runs: Ints, vocab_size: int, eos_id: int, order: int) -> Ngram:
        """Count n-grams up to ``order``; none goes over the border between two runs.

        Args:
            tokens: ids (N,), below ``vocab_size``.
            runs: tokens of each run (R,), which add up to N.
            eos_id: ends a document and stands before the next, whose n-grams start with it.

        Takes about 100 bytes of memory a token. Raises ValueError where there is no token. Where no
        run is as long as ``order``, the longest n-grams that there are come in its place.
        """
        if not len(tokens):
            raise ValueError("there is no token to count")
        assert runs.sum() == len(tokens) and int(tokens.max()) < vocab_size
        room = _room(tokens, np.cumsum(runs) - runs, eos_id, order)
        grams: Ints = tokens.astype(np.int32)  # number of the k-gram that ends at each token
        keys: Ints = np.arange(vocab_size)
        counts: Ints = np.bincount(grams, minlength=vocab_size)
        opening = np.zeros(vocab_size, bool)  # k-grams that nothing can stand before
        contexts: Ints = np.zeros(vocab_size, np.int64)
        number = 1
        orders = []
        for length in range(2, order + 1):
            places = np.flatnonzero(room >= length - 1)
            if not len(places):
                break
            longer, seen, firsts, numbers = _distinct(
                grams[places - 1].astype(np.int64) * vocab_size + tokens[places]
            )
            ends = places[firsts]
            # each different longer n-gram is one different token before its end
            before = np.bincount(grams[ends], minlength=len(keys)).astype(np.int32)
            orders.append(Order.of(keys, np.where(opening, counts, before), contexts, number))
            contexts, number = longer // vocab_size, len(keys)
            keys, counts, opening = longer, seen, tokens[ends - (length - 1)] == eos_id
            grams = np.full(len(tokens), -1, np.int32)
            grams[places] = numbers
        orders.append(Order.of(keys, counts, contexts, number))
        return cls(vocab_size, eos_id, orders)

    def probabilities(self, tokens: Ints) -> Floats:
        """Of each token (N,) after those before it in its document; the first has none before."""
        first, size = self.orders[0], len(tokens)
        ids = np.asarray(tokens, np.int64)
        room = _room(ids, np.zeros(1, np.int64), self.eos_id, len(self.orders))
        contexts: Ints = np.zeros(size, np.int64)
        found = first.mix(first.counts[ids], contexts, np.full(size, 1 / self.vocab_size))
        grams: Ints = ids
        for length, order in enumerate(self.orders[1:], 2):
            contexts = np.where(room >= length - 1, np.concatenate([[-1], grams[:-1]]), -1)
            grams = _find(order.keys, contexts * self.vocab_size + ids)
            grams[contexts < 0] = -1
            counts = np.where(grams >= 0, order.counts[grams], 0)
            found = order.mix(counts, contexts, found)
        return found


def _room(tokens: Ints, starts: Ints, eos_id: int, most: int) -> npt.NDArray[np.int8]:
    """How many tokens each has before it in its run, from the last EOS on; ``most`` at most."""
    places = np.arange(len(tokens), dtype=np.int32)
    begins = np.zeros(len(tokens), np.int32)
    ended = np.flatnonzero(tokens[:-1] == eos_id)
    begins[ended + 1] = ended
    begins[starts] = starts
    return np.minimum(places - np.maximum.accumulate(begins), most).astype(np.int8)


def discounts(counts: Ints) -> tuple[float, float, float]:
    """What is taken off n-grams seen once, twice, and more often (Chen & Goodman 1999, eq. 26)."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == n)) for n in (1, 2, 3, 4))
    if not all((n1, n2, n3, n4)):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    sound = all(0 < discount <= times for times, discount in enumerate(found, 1))
    return found if sound else FALLBACK


def _distinct(keys: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The different keys sorted, how often each comes, where one of each is, and each key's rank.

    `numpy.unique` with its inverse, but a key and its place are sorted as one number where 64 bits
    hold both, which takes a third of the time.
    """
    bits = len(keys).bit_length()
    if int(keys.max()).bit_length() + bits <= 63:
        both = np.sort((keys << bits) | np.arange(len(keys)))
        ordered, order = both >> bits, both & (2**bits - 1)
        del both
    else:
        order = np.argsort(keys)
        ordered = np.asarray(keys[order], np.int64)
    new = np.ones(len(keys), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    starts = np.flatnonzero(new)
    ranks = np.empty(len(keys), np.int32)
    ranks[order] = np.cumsum(new, dtype=np.int32) - 1
    seen = np.diff(starts, append=len(keys)).astype(np.int32)
    return ordered[starts], seen, order[starts], ranks


def _find(keys: Ints, wanted: Ints) -> Ints:
    """The place of each wanted key among sorted ones, -1 where it is not there."""
    order = np.argsort(wanted)  # searching in order stays within the processor's cache
    place = np.empty(len(wanted), np.int64)
    place[order] = np.minimum(np.searchsorted(keys, wanted[order]), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
