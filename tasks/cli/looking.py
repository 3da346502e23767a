"""What a chat shows of its models: what could come next, how likely what came was, who looks where.

Each is about the text so far, and changes nothing of it.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.cli.conversation import Conversation
from tasks.cli.samples import visible
from tasks.cli.speaker import Speaker
from tasks.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

LIKELIEST, MOST = 10, 100
MAP_TOKENS = 32  # rows of a map in the terminal


def show_next(talk: Conversation, rest: str) -> None:
    """`/next [K]`: the k likeliest next tokens of each model, by itself and as sampled."""
    from tasks.release.likely import chances, likeliest

    k = _count(rest, "k") if rest else LIKELIEST
    if not 1 <= k <= MOST:
        raise UserError(f"k is 1 to {MOST}, not {k}")
    for number, speaker in enumerate(talk.speakers):
        before, logits = speaker.sampler.next_logits(talk.text(number))
        drawn_with = chances(before, logits, talk.options)
        table = _table("", "next", "by the model", "as sampled")
        found = likeliest(speaker.sampler.tokenizer, before, logits, k)
        for place, one in enumerate(found, 1):
            sampled = drawn_with[one.id].item()
            row = (visible(one.name), percent(one.probability), percent(sampled))
            table.add_row(str(place), *row)
        _head(talk, speaker)
        talk.screen.print(table)
        print(f"{sum(one.probability for one in found):.1%} of the probability", flush=True)


def show_drawn(talk: Conversation) -> None:
    """The tokens of the last continuation, each with what it had against it."""
    for speaker, tokens in zip(talk.speakers, talk.drawn, strict=True):
        if not tokens:
            continue
        table = _table("token", "by the model", "likeliest there")
        for one in tokens:
            others = "  ".join(f"{visible(c.name)} {percent(c.probability)}" for c in one.likeliest)
            table.add_row(visible(one.token.name), percent(one.token.probability), others)
        _head(talk, speaker)
        talk.screen.print(table)


def show_attention(talk: Conversation, rest: str) -> None:
    """`/attention [FILE] [LAYER]`: a picture, or, without a file, a map in the terminal."""
    try:
        words = shlex.split(rest)
    except ValueError:
        raise UserError(f"the quotes of {rest} do not close") from None
    layer = None
    if words and (words[-1].isdecimal() or words[-1].startswith("-") or len(words) == 2):
        layer = _count(words.pop(), "the layer")
    if len(words) > 1:
        raise UserError("say: /attention [FILE] [LAYER]")
    if not any(turn.user or any(turn.replies) for turn in talk.turns):
        raise UserError("nothing was said yet: there is nothing to look at")
    for number, speaker in enumerate(talk.speakers):
        if words:
            path = Path(words[0]).expanduser()
            if len(talk.speakers) > 1:
                path = path.with_stem(f"{path.stem}-{number + 1}")
            _picture(talk, number, path, layer)
        else:
            _head(talk, speaker)
            _map(speaker, talk.text(number), layer)


def _picture(talk: Conversation, number: int, path: Path, layer: int | None) -> None:
    from tasks.release.attention_picture import check_picture, draw

    speaker = talk.speakers[number]
    check_picture(path, speaker.sampler.network.config, layer, where="/attention")
    text, reply = talk.text(number), talk.turns[-1].replies[number]
    encode, ids = speaker.sampler.encode, _read(speaker, text)
    new = len(encode(text)) - len(encode(text[: len(text) - len(reply)]))
    draw(speaker.sampler, ids, max(0, len(ids) - new), path, speaker.name, layer)
    print(f"attention: {path}", flush=True)


def _map(speaker: Speaker, text: str, layer: int | None) -> None:
    from tasks.release.attention_maps import attention_maps
    from tasks.release.attention_text import BLOCKS, FROM, PLAIN, shaded
    from tasks.release.token_names import token_names

    config = speaker.sampler.network.config
    if layer is not None and layer >= config.n_layers:
        raise UserError(f"layer {layer} is not one of the model's {config.n_layers}")
    ids = _read(speaker, text)
    maps = attention_maps(speaker.sampler.network, ids, None if layer is None else [layer])
    signs = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else PLAIN
    which = "all layers" if layer is None else f"layer {layer}"
    print(f"{which}, mean of the heads; a row's token looks at those above it and at itself:")
    names = [visible(name) for name in token_names(speaker.sampler.tokenizer, ids)]
    for line in shaded(maps.mean(dim=(0, 1)), names, MAP_TOKENS, signs):
        print(line)
    bounds = "  ".join(f"{sign} {least:g}" for sign, least in zip(signs[1:], FROM, strict=True))
    print(f"times an even share, from: {bounds}", flush=True)


def _read(speaker: Speaker, text: str) -> list[int]:
    """The ids of the end of the text that the context holds."""
    return speaker.sampler.encode(text)[-speaker.sampler.network.config.max_seq_len :]


def _head(talk: Conversation, speaker: Speaker) -> None:
    if len(talk.speakers) > 1:
        talk.screen.head(speaker.name)


def _table(*heads: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, head in enumerate(heads):
        last = place == len(heads) - 1
        table.add_column(head, overflow="fold" if last else "ellipsis", no_wrap=not last)
    return table


def percent(share: float) -> str:
    """A probability as a person reads it: three figures at most, and never a false nought."""
    if share == 0.0:
        return "-"
    return "<0.01%" if share < 1e-4 else f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _count(text: str, what: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{what} is a whole number, not {text!r}")
    return int(text)
