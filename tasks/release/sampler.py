"""Text in, text out: an exported folder with its tokenizer, ready to continue prompts.

    folder -> verified -> network (fp32 or bf16; int8 or int4 where asked) on a device
    prompts -> ids -> batches through `model.generate` -> samples, in the order of the prompts

Sample i draws with the seed `options.seed + i`, whatever batch it is in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from model.generate import Completion, generate, stream
from model.sampling import SamplingOptions
from tasks.errors import BAD_DATA, UserError
from tasks.evaluation.speed import Speed
from tasks.release.likely import WatchedDecoder
from tasks.release.opening import (
    DeviceName,
    Dtype,
    Quantization,
    integer_device,
    open_network,
    pick_device,
)
from tasks.tokens.text import TextTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from model import Transformer

Notice = Callable[[Sequence[int], "Tensor", int], None]
"""Is told of each new id: the ids before it, the logits (V,) that it was drawn from, and itself."""
BATCH_SIZE = 8
_UNFINISHED = "\ufffd"  # what bytes that are not yet a whole character decode to


@dataclass(frozen=True)
class Sample:
    """One continuation: `text` comes after `prompt`."""

    prompt: str
    text: str
    finish: str
    """Why it ended: eos, stop, length or context, as `model.generate.Finish`."""
    seed: int
    """Alone and with this seed, the prompt gives this text again."""
    prompt_ids: tuple[int, ...]
    """The ids that were read."""
    ids: tuple[int, ...]
    """The new ids."""
    dropped: int
    """Ids cut from the left of the prompt because the context could not hold them."""
    proposed: int
    """Ids that a draft model proposed."""
    accepted: int
    """Those of them that the model took."""

    def record(self, with_draft: bool = False) -> dict[str, Any]:
        """As plain values; nothing in it varies from run to run with the same seed."""
        values: dict[str, Any] = {
            "prompt": self.prompt,
            "text": self.text,
            "prompt_tokens": len(self.prompt_ids),
            "tokens": len(self.ids),
            "finish": self.finish,
            "dropped": self.dropped,
            "seed": self.seed,
        }
        if with_draft:
            values |= {"proposed": self.proposed, "accepted": self.accepted}
        return values


@dataclass
class Sampler:
    """A network and its tokenizer; a draft network of the same tokenizer makes it faster.

    The weights are taken as they are when it is first used.
    """

    network: Transformer
    tokenizer: TextTokenizer
    draft: Transformer | None = None
    compiled: bool = False
    """Whether a single row is decoded by `model.compiled`."""
    speed: Speed = field(default_factory=Speed)
    """Of all that was sampled."""
    _decoders: tuple[int, list[WatchedDecoder]] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        device: DeviceName = "cpu",
        dtype: Dtype = "fp32",
        quantize: Quantization | None = None,
        draft: Path | None = None,
        compiled: bool = False,
    ) -> Self:
        """Open an exported folder, after checking every file of it against its manifest.

        Args:
            device: ``auto`` is what PHASEWISE_DEVICE says, else the best there is.
            dtype: of the weights and the arithmetic.
            quantize: weights as small integers, on the CPU; what flows between is bf16.
            draft: the exported folder of a smaller model with the same tokenizer, which proposes
                tokens for this one to check (Leviathan et al., 2023).
            compiled: decode by a compiled step: one sample at a time, on the CPU (`sample` raises
                UserError where it cannot be).

        Raises UserError where a folder is missing, was changed or is no export, where the draft has
        another tokenizer, and where there is no such device.
        """
        where = pick_device(device if quantize is None else integer_device(device))
        network, tokenizer = open_network(folder, where, dtype, quantize)
        if draft is None:
            return cls(network, tokenizer, compiled=compiled)
        small, words = open_network(draft, where, dtype, None)
        if words.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the draft {draft} has another tokenizer (SHA-256 {words.fingerprint[:12]}...) "
                f"than {folder} ({tokenizer.fingerprint[:12]}...): its tokens mean other texts",
                hint="take as draft a smaller model of the same recipe's tokenizer",
                where="--draft",
            )
        return cls(network, tokenizer, small, compiled)

    def sample(
        self, prompts: Sequence[str], options: SamplingOptions, batch_size: int = BATCH_SIZE
    ) -> Iterator[Sample]:
        """A continuation of each prompt, in order; ``batch_size`` of them are drawn at once.

        An empty prompt starts from the end-of-text token. In fp32 the batch changes nothing; bf16
        may round another way, and so draw another token where two are as good as equal.
        """
        if not prompts:
            return
        options = self._complete(options)
        network, draft = self._laid_out(min(batch_size, len(prompts)))
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            drawn = shifted(options, start)
            ids = [self.encode(prompt) for prompt in batch]
            with self.speed.watch(*self._networks()):
                with _explained():
                    done = generate(network, ids, drawn, self.tokenizer.decode, draft)
                self.speed.add(done)
            for number, (prompt, completion) in enumerate(zip(batch, done, strict=True), start):
                yield self._sample(prompt, completion, shifted(options, number))

    def complete(self, prompt: str, options: SamplingOptions) -> Sample:
        """A continuation of one prompt."""
        [sample] = self.sample([prompt], options)
        return sample

    def stream(
        self,
        prompt: str,
        options: SamplingOptions,
        *,
        make_room: bool = False,
        notice: Notice | None = None,
    ) -> Generator[str, None, Sample]:
        """Pieces of the text of `complete` as they come, and the sample as the return value.

        A piece never ends inside a character, unless the text does.

        Args:
            make_room: read less of a prompt that would leave too little of the context for the new
                tokens, not only of one that is longer than the context.
            notice: is told of each new id before its text comes; not with a draft model, whose
                ids come several at once.
        """
        options = self._complete(options)
        network, draft = self._laid_out(1)
        assert notice is None or draft is None
        ids, cut = self.encode(prompt), 0
        if make_room:
            cut = self.too_many(len(ids), options.max_new_tokens)
            ids = ids[cut:]
        new: list[int] = []
        done: list[Completion] = []
        shown = ""

        def tokens() -> Iterator[int]:
            done.append((yield from stream(network, ids, options, self.tokenizer.decode, draft)))

        with self.speed.watch(*self._networks()), _explained():
            for token in tokens():
                if notice is not None:
                    assert network.seen is not None
                    notice([*ids, *new], network.seen[0, -1], token)
                new.append(token)
                text = self.tokenizer.continuation(ids, new)
                if not text.endswith(_UNFINISHED):
                    yield text[len(shown) :]
                    shown = text
            self.speed.add(done)
        sample = self._sample(prompt, done[0], options)
        sample = replace(sample, dropped=sample.dropped + cut)
        if sample.text != shown:
            yield sample.text[len(shown) :]
        return sample

    def too_many(self, tokens: int, max_new_tokens: int) -> int:
        """How many tokens of a text to leave out, so that the context has room for new ones.

        At least half of the context is for the text.
        """
        context = self.network.config.max_seq_len
        return max(0, tokens - (context - min(max_new_tokens, context // 2)))

    def next_logits(self, text: str) -> tuple[list[int], Tensor]:
        """The ids of a text, the last that the context holds, and the logits (V,) after them."""
        import torch

        ids = self.encode(text)[-self.network.config.max_seq_len :]
        network, _ = self._laid_out(1)
        cache = network.new_cache(1, len(ids))
        logits = network.read(torch.tensor([ids], device=network.device), cache)[0, -1]
        if logits.isnan().any():
            raise UserError(
                "the model's logits are NaN", hint="the model is broken", exit_code=BAD_DATA
            )
        return ids, logits

    def encode(self, prompt: str) -> list[int]:
        """The ids that are read for a text: the end-of-text id for an empty one."""
        return self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]

    def _networks(self) -> list[Transformer]:
        return [self.network] if self.draft is None else [self.network, self.draft]

    def _laid_out(self, rows: int) -> tuple[WatchedDecoder, WatchedDecoder | None]:
        """The networks as `generate` wants them for so many rows; kept for the next call."""
        if self._decoders is None or self._decoders[0] != rows:
            self._decoders = (rows, [self._decoder(network, rows) for network in self._networks()])
        network, *draft = self._decoders[1]
        return network, draft[0] if draft else None

    def _decoder(self, network: Transformer, rows: int) -> WatchedDecoder:
        try:
            return WatchedDecoder(network, rows, compiled=self.compiled)
        except ValueError as error:
            hint = "leave it out" if rows == 1 else "add --batch-size 1, or leave it out"
            raise UserError(str(error), where="--compile", hint=hint) from None

    def _complete(self, options: SamplingOptions) -> SamplingOptions:
        return replace(seeded(options), eos_ids=(self.tokenizer.eos_id,))

    def _sample(self, prompt: str, done: Completion, options: SamplingOptions) -> Sample:
        assert options.seed is not None
        return Sample(
            prompt=prompt,
            text=self.tokenizer.continuation(done.prompt, done.ids),
            finish=done.finish,
            seed=options.seed,
            prompt_ids=tuple(done.prompt),
            ids=tuple(done.ids),
            dropped=done.dropped,
            proposed=done.proposed,
            accepted=done.accepted,
        )


@contextmanager
def _explained() -> Iterator[None]:
    """What a network cannot do, such as go on from weights that are not numbers, said in a line."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error), hint="the model is broken", exit_code=BAD_DATA) from None


def seeded(options: SamplingOptions) -> SamplingOptions:
    """The options with a seed that can be told, drawn now where there was none."""
    return options if options.seed is not None else replace(options, seed=secrets.randbelow(2**32))


def shifted(options: SamplingOptions, number: int) -> SamplingOptions:
    """The options that sample ``number`` draws with, as `model.generate` counts seeds."""
    assert options.seed is not None
    return replace(options, seed=(options.seed + number) % 2**63)
