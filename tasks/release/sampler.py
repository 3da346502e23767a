"""Text in, text out: an exported folder with its tokenizer, ready to continue prompts.

    folder -> verified -> network (fp32 or bf16; int8 or int4 where asked) on a device
    prompts -> ids -> batches through `model.generate` -> samples, in the order of the prompts

Sample i draws with the seed `options.seed + i`, whatever batch it is in.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from model.decoder import Decoder
from model.generate import Completion, generate, stream
from model.sampling import SamplingOptions
from tasks.errors import BAD_DATA, UserError, unknown_name
from tasks.release.speed import Speed
from tasks.tokens.text import TextTokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch

    from model import Transformer

Dtype = Literal["fp32", "bf16"]
Quantization = Literal["int8", "int4"]
DeviceName = Literal["auto", "cpu", "cuda", "mps"]
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
    _decoders: tuple[int, list[Decoder]] | None = field(default=None, repr=False)

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
        where = pick_device(device if quantize is None else _for_integers(device))
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
            ids = [self._encode(prompt) for prompt in batch]
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

    def stream(self, prompt: str, options: SamplingOptions) -> Generator[str, None, Sample]:
        """Pieces of the text of `complete` as they come, and the sample as the return value.

        A piece never ends inside a character, unless the text does.
        """
        options = self._complete(options)
        network, draft = self._laid_out(1)
        ids = self._encode(prompt)
        new: list[int] = []
        done: list[Completion] = []
        shown = ""

        def tokens() -> Iterator[int]:
            done.append((yield from stream(network, ids, options, self.tokenizer.decode, draft)))

        with self.speed.watch(*self._networks()), _explained():
            for token in tokens():
                new.append(token)
                text = self.tokenizer.continuation(ids, new)
                if not text.endswith(_UNFINISHED):
                    yield text[len(shown) :]
                    shown = text
            self.speed.add(done)
        sample = self._sample(prompt, done[0], options)
        if sample.text != shown:
            yield sample.text[len(shown) :]
        return sample

    def _networks(self) -> list[Transformer]:
        return [self.network] if self.draft is None else [self.network, self.draft]

    def _laid_out(self, rows: int) -> tuple[Decoder, Decoder | None]:
        """The networks as `generate` wants them for so many rows; kept for the next call."""
        if self._decoders is None or self._decoders[0] != rows:
            self._decoders = (rows, [self._decoder(network, rows) for network in self._networks()])
        network, *draft = self._decoders[1]
        return network, draft[0] if draft else None

    def _decoder(self, network: Transformer, rows: int) -> Decoder:
        try:
            return Decoder(network, rows, compiled=self.compiled)
        except ValueError as error:
            hint = "leave it out" if rows == 1 else "add --batch-size 1, or leave it out"
            raise UserError(str(error), where="--compile", hint=hint) from None

    def _encode(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(prompt) or [self.tokenizer.eos_id]

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


def open_network(
    folder: Path, device: torch.device, dtype: Dtype, kind: Quantization | None
) -> tuple[Transformer, TextTokenizer]:
    """The network of an exported folder, ready to run, and its tokenizer. Errors as of `open`."""
    import torch

    from tasks.release.manifest import verify_model
    from tasks.release.native import load_export

    verify_model(folder)
    tokenizer = load_tokenizer(folder)
    network = load_export(folder, device, torch.bfloat16 if dtype == "bf16" else torch.float32)
    if kind is not None:
        from tasks.release.quantize import quantize

        network = quantize(network, kind)
    return network.eval(), tokenizer


def pick_device(name: str) -> torch.device:
    """The device of that name. Raises UserError where this machine has none."""
    from tasks.settings import settings
    from tasks.training.device import open_device

    if name not in get_args(DeviceName):
        raise unknown_name("device", name, get_args(DeviceName))
    here = settings()
    if name == "auto":
        return open_device(here, "fp32").torch_device
    try:
        return open_device(here.model_copy(update={"device": name}), "fp32").torch_device
    except UserError as error:
        raise UserError(
            error.message, where="--device", hint="leave it out, or set it to auto or cpu"
        ) from None


def _for_integers(device: DeviceName) -> DeviceName:
    if device not in ("auto", "cpu"):
        raise UserError(
            f"quantized weights run on the CPU, not on {device}",
            where="--quantize",
            hint="leave out --device, or take --dtype bf16 there",
        )
    return "cpu"
