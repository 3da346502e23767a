"""All that training remembers between two steps, and nothing else.

Weights, their average, the optimizer's moments, the loss scale, the last losses and a few counts.
The data order and the dropout masks need no state: both are pure functions of the seed and the
step.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model import ModelConfig, Transformer
from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json
from tasks.recipe import Phase
from tasks.training import checkpoint, parallel
from tasks.training.device import Device
from tasks.training.ema import EMA
from tasks.training.optimizer import Optimizers
from tasks.training.parallel import Layout, Objective
from tasks.training.spikes import Spikes
from tasks.training.world import World


@dataclass
class TrainState:
    """The state after ``step`` optimizer steps of one phase."""

    phase: str
    settings: Phase
    device: Device
    model: Transformer
    optimizer: Optimizers
    scaler: torch.amp.GradScaler
    ema: EMA | None
    objective: nn.Module
    world: World = field(default_factory=World)
    compiled: bool = False
    spikes: Spikes = field(default_factory=lambda: Spikes(None))
    step: int = 0
    updates: int = 0  # optimizer updates, those of a parent it carries on included
    skipped: int = 0  # steps that left the weights alone
    skipped_in_row: int = 0

    @property
    def tokens(self) -> int:
        return self.settings.plan.at(self.step).first

    @classmethod
    def build(
        cls,
        phase: str,
        settings: Phase,
        device: Device,
        model: Transformer,
        *,
        world: World = World(),  # noqa: B008 (frozen)
        layout: Layout = "one",
        compiled: bool = False,
    ) -> TrainState:
        """The state at step 0 of a network, laid out over the ranks."""
        if layout == "fsdp" and settings.optimizer.name == "muon":
            raise UserError(
                "Muon needs whole matrices, which fsdp does not have",
                where="PHASEWISE_PARALLEL",
                hint="use ddp, or optimizer.name adamw",
            )
        model = model.to(device.torch_device)
        model.recompute = settings.recompute
        bare = Objective(model, settings.label_smoothing)
        objective = parallel.lay_out(bare, world, layout, compiled)
        return cls(
            phase=phase,
            settings=settings,
            device=device,
            model=model,
            optimizer=Optimizers(model, settings.optimizer, settings.lr),
            scaler=device.scaler(),
            ema=EMA(model, settings.ema_decay) if settings.ema_decay else None,
            objective=objective,
            world=world,
            compiled=compiled,
            spikes=Spikes(settings.spike_factor),
        )

    @classmethod
    def start(
        cls,
        phase: str,
        settings: Phase,
        device: Device,
        parent: Path,
        config: ModelConfig,
        **how: Any,
    ) -> TrainState:
        """The state at step 0: the parent's weights; its optimizer only if the recipe says so.

        Args:
            config: of the network, as of `starting.starting_config`.
            how: ``world``, ``layout`` and ``compiled``, as of ``build``.
        """
        state = cls.build(phase, settings, device, load_network(parent, config=config), **how)
        if settings.carry_optimizer and settings.parent is not None:
            state.updates = read_json(parent / "state.json")["updates"]
            state.optimizer.load(checkpoint.load_tensors(parent, "optimizer"), state.updates)
        return state

    @classmethod
    def resume(
        cls, phase: str, settings: Phase, device: Device, folder: Path, **how: Any
    ) -> TrainState:
        """The state that ``save`` wrote to ``folder``, bit for bit; other arguments as above."""
        state = cls.build(phase, settings, device, load_network(folder), **how)
        record = read_json(folder / "state.json")
        state.step, state.updates = record["step"], record["updates"]
        state.skipped, state.skipped_in_row = record["skipped"], record["skipped_in_row"]
        state.spikes = Spikes(settings.spike_factor, record["recent_losses"])
        state.optimizer.load(checkpoint.load_tensors(folder, "optimizer"), state.updates)
        if record["scaler"]:
            state.scaler.load_state_dict(record["scaler"])
        if state.ema:
            state.ema.load(checkpoint.load_tensors(folder, "ema"), record["ema_updates"], folder)
        return state

    def gradients_meet(self, last: bool) -> AbstractContextManager[None]:
        """See ``parallel.gradients_meet``."""
        return parallel.gradients_meet(self.objective, last)

    def clip_gradients(self) -> float:
        """Clip the gradient to ``grad_clip``; returns its norm before."""
        self.optimizer.unscale(self.scaler)
        return parallel.gradient_norm(self.model, self.settings.grad_clip or math.inf)

    def overflowed(self, loss: float) -> bool:
        """Whether a gradient that is not finite is fp16's doing, which a lower scale mends."""
        return self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > 1

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Copies on the CPU of all that a checkpoint holds, by file; every rank must ask."""
        groups = {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.tensors()}
        if self.ema:
            groups["ema"] = self.ema.tensors(self.model)
        # copied, so that training goes on while a checkpoint is written; contiguous and each in
        # its own storage, as safetensors wants it
        return {
            stem: {
                name: parallel.whole(t).detach().to("cpu", copy=True).contiguous()
                for name, t in named.items()
            }
            for stem, named in groups.items()
        }

    def records(self, run_key: str, local: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, by file.

        Args:
            run_key: names the run that made it: recipe, phase and fingerprint of its inputs.
            local: what only the running folder needs.
        """
        state = {
            "phase": self.phase,
            "step": self.step,
            "tokens": self.tokens,
            "samples": self.tokens // self.settings.seq_len,
            "updates": self.updates,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "recent_losses": list(self.spikes.losses),
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": self.scaler.state_dict(),
            "run_key": run_key,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": self.world.size,
            "compiled": self.compiled,
        }
        config = {"phasewise": self.model.config.to_dict()}
        return {"state": state, "config": config, "local": local}


def load_network(
    folder: Path, stem: str = "model", config: ModelConfig | None = None
) -> Transformer:
    """The network of a checkpoint folder with the weights of ``<stem>.safetensors``, on the CPU.

    It is the folder's own, or ``config``'s, which has the same names and shapes.

    Raises UserError where names or shapes are not exactly the network's.
    """
    config = config or ModelConfig.from_dict(read_json(folder / "config.json")["phasewise"])
    network = Transformer(config)
    tensors = checkpoint.load_tensors(folder, stem)
    fit_names(network, tensors, folder)
    network.load_state_dict(tensors)
    return network


def fit_names(network: Transformer, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Raise UserError unless ``tensors`` has just the network's names and shapes."""
    expected = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    odd = sorted(name for name in expected.keys() | found.keys()
                 if expected.get(name) != found.get(name))  # fmt: skip
    if odd:
        raise UserError(
            f"{folder}: tensors do not fit the network: {', '.join(odd[:10])}", exit_code=BAD_DATA
        )
