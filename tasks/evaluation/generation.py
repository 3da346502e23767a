"""Stage `generate`: what a finished phase writes, with raw and EMA weights, and how good that is.

    checkpoints/<phase> x evaluation.prompts x seeds -> continuations -> varied? in circles? copied?
                                                  evaluation/<phase>.generation.json

Continuation i goes on from prompt i modulo the prompts, with the seed of the recipe + i and the
sampling of the recipe, for evaluation.sample_tokens tokens: `phasewise generate` gives it again. As
many beginnings of held-out documents are measured the same way, as a control: what people wrote
repeats itself too, and some of it stands in the training text by right (licences, quotations).

Memorised is a span of evaluation.memorised_span tokens that stands in the training text word for
word (50 in Carlini et al. 2023, "Quantifying memorization across neural language models"), of all
such spans of the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tasks import stage
from tasks.files import write_json
from tasks.progress import progress
from tasks.recipe import Recipe
from tasks.settings import settings
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from model import Transformer
    from tasks.release.sampler import Sample
    from tasks.tokens.text import TextTokenizer

BATCH_SIZE = 32
CONTROL = "held_out"  # stands beside the weights among the measures


def generate(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Write evaluation/<phase>.generation.json: samples, one a prompt and weights; measures; speed.

    Raises UserError where the checkpoint, the mix or the shards are missing or damaged.
    """
    from tasks.evaluation.drawn import drawn
    from tasks.evaluation.evaluate import FILES, weights_in
    from tasks.evaluation.speed import measure
    from tasks.tokens.text import load_tokenizer
    from tasks.training import checkpoint
    from tasks.training.device import open_device
    from tasks.training.state import load_network

    source = checkpoint.require(workspace.checkpoint(phase))
    plan, tokenizer = recipe.evaluation, load_tokenizer(workspace.tokenizer)
    device = open_device(settings(), "fp32").torch_device
    there = weights_in(source)
    texts: dict[str, list[list[int]]] = {}
    samples: list[dict[str, Any]] = []
    speed: dict[str, Any] = {}
    with progress(len(there) * plan.samples, "samples", f"generating with {phase}") as shown:
        for weights in there:
            network = load_network(source, FILES[weights]).float().to(device).eval()
            speed = speed or measure(network)
            texts[weights] = []
            for number, sample in enumerate(draw(network, tokenizer, recipe)):
                texts[weights].append(list(sample.ids))
                if number < len(plan.prompts):
                    samples.append(_record(sample, weights))
                shown.advance(1)
    texts[CONTROL] = held_out_texts(workspace, recipe, plan.samples, plan.sample_tokens)
    span = min(plan.memorised_span, max(len(text) for some in texts.values() for text in some))
    copied = memorised(texts, max(span, 1), drawn(workspace, recipe, phase))
    same = min(sum(map(len, some)) for some in texts.values())  # distinct-n falls with the amount
    measures = {name: measures_of(some, same) | copied[name] for name, some in texts.items()}
    about = {"samples": plan.samples, "sample_tokens": plan.sample_tokens,
             "memorised_span": span, "distinct_tokens": same}  # fmt: skip
    write_json(
        workspace.evaluation(phase, "generation.json"),
        {"samples": samples, "measures": measures, "settings": about, "speed": speed},
    )
    print(table(measures, span))
    print(f"    {show_speed(speed)}")


def draw(network: Transformer, tokenizer: TextTokenizer, recipe: Recipe) -> Iterator[Sample]:
    """`evaluation.samples` continuations, the prompts in turn; the same seeds for all weights."""
    from model.sampling import SamplingOptions
    from tasks.release.sampler import Sampler

    plan = recipe.evaluation
    chosen = plan.sampling.keywords() | {"max_new_tokens": plan.sample_tokens}
    options = SamplingOptions(**chosen, seed=recipe.seed)
    prompts = [plan.prompts[i % len(plan.prompts)] for i in range(plan.samples)]
    return Sampler(network, tokenizer).sample(prompts, options, BATCH_SIZE)


def held_out_texts(
    workspace: Workspace, recipe: Recipe, count: int, tokens: int
) -> list[list[int]]:
    """The first ``tokens`` ids of ``count`` held-out documents, spread evenly over all of them.

    Documents that are shorter are taken only where fewer than ``count`` are long enough.
    """
    import numpy as np

    from tasks.tokens.shards import open_split, splits

    places = []
    for source in recipe.sources:
        for name in splits(workspace.tokens(source)):
            if name != "train":
                split = open_split(workspace.tokens(source), name, verify=False)
                ends = split.ends.tolist()
                places += [(split, *place) for place in zip([0, *ends[:-1]], ends, strict=True)]
    chosen = [place for place in places if place[2] - place[1] > tokens]
    if len(chosen) < count:
        chosen = sorted(places, key=lambda place: place[1] - place[2])[:count]
    picked = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).astype(int).tolist()
    texts = [chosen[number] for number in picked]
    return [s.read(start, min(start + tokens, end - 1)).tolist() for s, start, end in texts]


def cut(texts: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The first texts that make up so many tokens, the last of them cut."""
    kept = []
    for text in texts:
        kept.append(text[:tokens])
        tokens -= len(kept[-1])
    return kept


def measures_of(texts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
    """How varied the first ``tokens`` of texts are, and how much of each repeats itself."""
    from tasks.evaluation.diversity import distinct, repetition_rate

    same = cut(texts, tokens)
    values: dict[str, Any] = {f"distinct_{n}": distinct(same, n) for n in (1, 2, 3)}
    return values | {
        "repetition_rate": repetition_rate(texts),
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
    }


def memorised(
    texts: dict[str, list[list[int]]], span: int, training: list[Any]
) -> dict[str, dict[str, Any]]:
    """For each name ``memorised_share`` (None without a span) and the ``spans`` it is of.

    One pass over the training text looks for the spans of all.
    """
    import numpy as np

    from tasks.evaluation.memorisation import found_in_training, spans_of

    spans = {name: spans_of(map(np.asarray, some), span) for name, some in texts.items()}
    found = found_in_training(np.concatenate(list(spans.values())), training)
    ends = np.cumsum([len(some) for some in spans.values()])
    shares = {}
    for name, part in zip(spans, np.split(found, ends[:-1]), strict=True):
        share = float(part.mean()) if len(part) else None
        shares[name] = {"memorised_share": share, "spans": len(part)}
    return shares


def table(measures: dict[str, dict[str, Any]], span: int) -> str:
    """The measures as lines of text, a line a name."""
    columns = ("distinct_1", "distinct_2", "distinct_3", "repetition_rate", "memorised_share")
    width = max(len(name) for name in measures)
    lines = [f"    {'':<{width}} " + " ".join(f"{c.replace('_', ' '):>15}" for c in columns)]
    for name, row in measures.items():
        cells = ["-" if row[c] is None else f"{row[c]:.4f}" for c in columns]
        lines.append(f"    {name:<{width}} " + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join([*lines, f"    memorised: spans of {span} tokens"])


def show_speed(speed: dict[str, Any]) -> str:
    """The figures of `speed.measure` in a line."""
    parts = [
        f"batch {name.removeprefix('batch_')}: prompt {rates['prefill_tokens_per_second']:,.0f}, "
        f"new {rates['decode_tokens_per_second']:,.0f} tokens/s"
        for name, rates in speed.items()
        if isinstance(rates, dict)
    ]
    return "; ".join(parts)


def _record(sample: Sample, weights: str) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "text": sample.text,
        "weights": weights,
        "seed": sample.seed,
    }


if __name__ == "__main__":
    stage.main(generate, "phase")
