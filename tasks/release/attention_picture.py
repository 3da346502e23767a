"""A picture of attention: layers down, heads across, in each a query a row and a key a column.

One head alone, or a few of a short text, have the tokens on their axes. PNG, SVG, or a page with
the SVG in it; equal maps give equal bytes.
"""

from __future__ import annotations

import html
import io
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from tasks.errors import NO_INPUT, UserError, nearest
from tasks.files import write_bytes
from tasks.release.token_names import token_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from model import ModelConfig
    from tasks.release.sampler import Sampler

SUFFIXES = (".png", ".svg", ".html")
MOST_TOKENS = 40  # on an axis
MOST_NAMED_PANELS = 4  # panels that are large enough for names
MOST_WEIGHTS = 60_000_000  # 240 MB of fp32, and a grid that somebody can still read
INK, PALE, EDGE = "#1f2328", "#8c959f", "#d1721c"


def check_picture(
    path: Path,
    config: ModelConfig,
    layer: int | None = None,
    head: int | None = None,
    where: str = "--attention",
) -> None:
    """Raises UserError where no such picture can be drawn, before anything is generated."""
    if path.suffix.lower() not in SUFFIXES:
        guess = nearest(path.suffix.lower(), SUFFIXES)
        hint = f"did you mean {path.with_suffix(guess)}? " if guess else ""
        raise UserError(
            f"no picture is written as {path.suffix or 'a file without an ending'}",
            where=where,
            hint=f"{hint}the endings are {', '.join(SUFFIXES)}",
        )
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}", where=where, exit_code=NO_INPUT)
    for name, value, count in (("layer", layer, config.n_layers), ("head", head, config.n_heads)):
        if value is not None and value >= count:
            raise UserError(
                f"{name} {value} is not one of the model's {count}", hint=f"0 to {count - 1}"
            )


def draw(
    sampler: Sampler,
    ids: Sequence[int],
    prompt_tokens: int,
    path: Path,
    model: str,
    layer: int | None = None,
    head: int | None = None,
) -> None:
    """Write the picture of a text, whose first ids are its prompt, of all layers and heads or one.

    Ids beyond the context were never read: they are left out. Raises UserError where the maps
    would not fit into one picture.
    """
    from tasks.release.attention_maps import attention_maps

    config = sampler.network.config
    ids = ids[: config.max_seq_len]
    layers = list(range(config.n_layers)) if layer is None else [layer]
    heads = list(range(config.n_heads)) if head is None else [head]
    if len(layers) * config.n_heads * len(ids) ** 2 > MOST_WEIGHTS:
        raise UserError(
            f"the maps of {len(ids):,} tokens in {len(layers)} layers are too many for a picture",
            hint="choose one layer, or give fewer tokens",
        )
    maps = attention_maps(sampler.network, ids, layers)[:, heads]
    name = model if model.startswith("models:/") else Path(model).resolve().name
    words = token_names(sampler.tokenizer, ids)
    if path.suffix.lower() == ".png":
        words = [w if drawable(w) else f"#{id_}" for w, id_ in zip(words, ids, strict=True)]
    figure = picture(maps, words, prompt_tokens, name, layers, heads)
    write_bytes(path, rendered(figure, path.suffix.lower(), f"Attention of {name}"))


def drawable(text: str) -> bool:
    """Whether the font has every sign of the text; a browser, which shows an SVG, has more."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return all(font.get_char_index(ord(sign)) for sign in text)


def picture(
    maps: Tensor,
    names: Sequence[str],
    prompt_tokens: int,
    model: str,
    layers: Sequence[int],
    heads: Sequence[int],
) -> Figure:
    """A figure of maps (layers, heads, T, T); ``names`` are those of the T tokens.

    Lines part the prompt from the continuation.
    """
    from matplotlib.figure import Figure

    panels = [(layer, head) for layer in layers for head in heads]
    tokens, one = len(names), len(panels) == 1
    # one layer's heads, or one head's layers, go into as square a grid as they can
    columns = len(heads) if min(len(layers), len(heads)) > 1 else math.ceil(len(panels) ** 0.5)
    rows = math.ceil(len(panels) / columns)
    named = len(panels) <= MOST_NAMED_PANELS and tokens <= MOST_TOKENS
    side = max(3.6, 0.24 * tokens + 0.9) if named else 6.0 if one else 1.6
    figure = Figure(
        figsize=(columns * side + 1.6, rows * side + 1.2), dpi=140, layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for axes, place in itertools.zip_longest(grid.flat, panels):
        if place is None:
            axes.set_axis_off()
            continue
        layer, head = place
        # square roots: most weights are small, and their order should still be seen
        weights = maps[layers.index(layer), heads.index(head)].sqrt().numpy()
        image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        _frame(axes, names if named else None)
        if prompt_tokens < tokens:
            axes.axhline(prompt_tokens - 0.5, color=EDGE, linewidth=0.8)
            axes.axvline(prompt_tokens - 0.5, color=EDGE, linewidth=0.8)
        if not one:
            axes.set_title(f"layer {layer}, head {head}", fontsize=8, color=INK)
    _scale(figure, grid, image)
    which = f", layer {layers[0]}, head {heads[0]}" if one else ""
    title = f"Attention of {model}{which}: {tokens} tokens"
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    lines = "; orange: where the continuation begins" if prompt_tokens < tokens else ""
    figure.supxlabel(f"looked at (key){lines}", fontsize=9, color=INK)
    figure.supylabel("token that looks (query)", fontsize=9, color=INK)
    return figure


def _frame(axes: Axes, names: Sequence[str] | None) -> None:
    """Thin lines, and the tokens where they fit."""
    for side in axes.spines.values():
        side.set_color(PALE)
        side.set_linewidth(0.5)
    if names is None:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    style: dict[str, Any] = {"fontsize": 8, "color": INK, "parse_math": False}
    axes.set_xticks(range(len(names)), names, rotation=90, **style)
    axes.set_yticks(range(len(names)), names, **style)
    axes.tick_params(length=0)


def _scale(figure: Figure, grid: Any, image: Any) -> None:
    """What the colours mean, in weights: they are drawn as square roots."""
    shares = (0, 0.01, 0.05, 0.25, 0.5, 1)
    bar = figure.colorbar(image, ax=grid, fraction=0.02, pad=0.02, aspect=30)
    bar.set_ticks([share**0.5 for share in shares], labels=[f"{share:.0%}" for share in shares])
    bar.ax.tick_params(labelsize=8, colors=INK, length=2)
    bar.outline.set_linewidth(0.5)


def rendered(figure: Figure, suffix: str, title: str) -> bytes:
    """The figure as a file of that ending."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    kind = "png" if suffix == ".png" else "svg"
    # text stays text in an SVG, and no id or date in it is drawn by chance
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "phasewise"}), catch_warnings():
        filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a browser has it
        metadata = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(buffer, format=kind, metadata=metadata)
    content = buffer.getvalue()
    if suffix != ".html":
        return content
    drawing = content.decode()[content.decode().index("<svg") :]
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title>\n"
        f"<style>body{{margin:2rem;background:#fff}}svg{{max-width:100%;height:auto}}</style>\n"
        f"{drawing}</html>\n"
    ).encode()
