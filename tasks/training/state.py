"""All that training remembers between two steps, and nothing else.

Weights, their average, the optimizer's moments, the loss scale and three counts. The data order and
the dropout masks need no state: both are pure functions of the seed and the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model import ModelConfig, Transformer
from tasks.errors import BAD_DATA, UserError
from tasks.files import read_json
from tasks.recipe import Phase
from tasks.training import checkpoint
from tasks.training.device import Device
from tasks.training.ema import EMA
from tasks.training.optimizer import build_optimizer, load_optimizer, optimizer_tensors


@dataclass
class TrainState:
    """The state after ``step`` optimizer steps of one phase."""

    phase: str
    settings: Phase
    device: Device
    model: Transformer
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    ema: EMA | None
    step: int = 0
    updates: int = 0  # optimizer updates, those of a parent it carries on included
    skipped: int = 0  # steps that the fp16 scaler skipped

    @property
    def tokens(self) -> int:
        return self.step * self.settings.batch_tokens

    @classmethod
    def start(cls, phase: str, settings: Phase, device: Device, parent: Path) -> TrainState:
        """The state at step 0: the parent's weights; its optimizer only if the recipe says so."""
        state = cls._build(phase, settings, device, parent)
        if settings.carry_optimizer and settings.starts_from != "init":
            state.updates = read_json(parent / "state.json")["updates"]
            moments = checkpoint.load_tensors(parent, "optimizer")
            load_optimizer(state.optimizer, state.model, moments, state.updates)
        return state

    @classmethod
    def resume(cls, phase: str, settings: Phase, device: Device, folder: Path) -> TrainState:
        """The state that ``save`` wrote to ``folder``, bit for bit."""
        state = cls._build(phase, settings, device, folder)
        record = read_json(folder / "state.json")
        state.step, state.updates = record["step"], record["updates"]
        state.skipped = record["skipped"]
        moments = checkpoint.load_tensors(folder, "optimizer")
        load_optimizer(state.optimizer, state.model, moments, state.updates)
        if record["scaler"]:
            state.scaler.load_state_dict(record["scaler"])
        if state.ema:
            averages = checkpoint.load_tensors(folder, "ema", device.torch_device)
            if averages.keys() != state.ema.average.keys():
                raise UserError(f"{folder}: the EMA is of another network", exit_code=BAD_DATA)
            # cloned: tensors of a file lie unaligned, which changes the last bits of sums
            state.ema.average = {name: t.clone() for name, t in averages.items()}
            state.ema.updates = record["ema_updates"]
        return state

    @classmethod
    def _build(cls, phase: str, settings: Phase, device: Device, weights: Path) -> TrainState:
        model = load_network(weights).to(device.torch_device)
        return cls(
            phase=phase,
            settings=settings,
            device=device,
            model=model,
            optimizer=build_optimizer(model, settings.optimizer, settings.lr),
            scaler=device.scaler(),
            ema=EMA(model, settings.ema_decay) if settings.ema_decay else None,
        )

    def save(self, folder: Path, run_key: str, local: dict[str, Any]) -> None:
        """Write the state as a checkpoint.

        Args:
            run_key: names the run that made it: recipe, phase and fingerprint of its inputs.
            local: what only this running folder needs.
        """
        tensors = {
            "model": dict(self.model.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        if self.ema:
            tensors["ema"] = self.ema.average
        state = {
            "phase": self.phase,
            "step": self.step,
            "tokens": self.tokens,
            "samples": self.step * self.settings.batch_size,
            "updates": self.updates,
            "skipped": self.skipped,
            "ema_updates": self.ema.updates if self.ema else 0,
            "scaler": self.scaler.state_dict(),
            "run_key": run_key,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        config = {"phasewise": self.model.config.to_dict()}
        records = {"state": state, "config": config, "local": local}
        checkpoint.save(folder, tensors, records)


def load_network(folder: Path, stem: str = "model") -> Transformer:
    """The network of a checkpoint folder with the weights of ``<stem>.safetensors``, on the CPU.

    Raises UserError where names or shapes are not exactly the network's.
    """
    config = ModelConfig.from_dict(read_json(folder / "config.json")["phasewise"])
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
