"""What surrounds the training loop: where a phase begins, its record, checkpoints and end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from model import ModelConfig
from tasks.errors import BUSY, UserError
from tasks.files import fingerprint, read_json
from tasks.planning import flops_a_token
from tasks.progress import progress, silent
from tasks.recipe import Recipe
from tasks.settings import settings as machine_settings
from tasks.tokens.mixture import load_mix
from tasks.tokens.reader import Reader
from tasks.training import checkpoint, compiling, identity, loop
from tasks.training.device import micro_batch_size, open_device, peak_flops
from tasks.training.follower import Follower
from tasks.training.history import History, NoHistory
from tasks.training.layers import layer_norms
from tasks.training.leaving import Leaving
from tasks.training.loop import StepReport
from tasks.training.placing import place
from tasks.training.preflight import preflight
from tasks.training.samples import Samples
from tasks.training.saver import Saver
from tasks.training.selection import Selection
from tasks.training.state import TrainState
from tasks.training.validate import held_out_sets, validate
from tasks.training.watchdog import Watchdog
from tasks.training.world import World
from tasks.units import show_count, show_seconds
from tasks.workspace import Workspace


class Trainer:
    """One phase being trained, by one process of ``world``; the main one alone writes."""

    def __init__(self, workspace: Workspace, recipe: Recipe, phase: str, world: World) -> None:
        self.workspace, self.recipe, self.phase, self.world = workspace, recipe, phase, world
        self.settings = recipe.phases[phase]
        self.machine = machine_settings()
        self.run = workspace.run(phase)
        mix = load_mix(workspace.mix(phase))
        self.identity = identity.identity(workspace, recipe, phase, mix.fingerprint)
        self.adopted: list[str] = []
        if world.is_main:
            self.adopted = identity.claim(self.run, self.identity, self.machine)
            self.resumed_from = checkpoint.newest(self.run)
        world.wait()
        if not world.is_main:
            self.resumed_from = checkpoint.newest(self.run)
        self.run_key = f"{recipe.name}/{phase}/{fingerprint(self.identity)[:16]}"
        self.device = open_device(self.machine, self.settings.precision, world.local_rank)
        self.micro_batch = micro_batch_size(self.machine, self.settings)
        self.reader = Reader(workspace, mix, verify=world.is_main)
        self.held_out = held_out_sets(
            workspace, recipe, self.settings.validation_tokens, ("validation",)
        )
        self.eos_id = read_json(workspace.tokenizer / "report.json")["eos_id"]
        self.parent = workspace.checkpoint(self.settings.starts_from)
        config = ModelConfig.from_dict(self.identity["model"])
        self.compiled = compiling.wanted(self.machine, self.settings, config, self.device)
        self.state = self._open_state(config)
        local = read_json(self.resumed_from / "local.json") if self.resumed_from else {}
        self.history_lines = local.get("history_lines", 0)
        self.selection = Selection(self.settings, local.get("selection"))
        self.saver = Saver(self.run, self.machine.keep_checkpoints)
        self.samples = Samples(workspace, recipe, self.state)
        self.flops_a_token = flops_a_token(self.state.model.config, self.settings.seq_len)
        self.peak_flops = (peak_flops(self.device) or 0.0) * world.size
        self.tokens_before = sum(recipe.phases[p].total_tokens for p in recipe.parents(phase))
        self.last_validation: list[dict[str, Any]] = []
        self.saved_at = -1

    def _open_state(self, config: ModelConfig) -> TrainState:
        """The newest checkpoint of the run, or the parent's end."""
        layout = self.machine.parallel if self.world.size > 1 else "one"
        where = (self.phase, self.settings, self.device)
        how: dict[str, Any] = {"world": self.world, "layout": layout, "compiled": self.compiled}
        if self.resumed_from:
            return TrainState.resume(*where, self.resumed_from, **how)
        return TrainState.start(*where, self.parent, config, **how)

    def run_to_end(self) -> None:
        """Train what is left, then place the phase."""
        self.leaving = Leaving(self.machine, self.world)
        if self.world.is_main:
            preflight(self)
        self._open_history()
        follower = Follower(self.run) if self.machine.track and self.world.is_main else None
        tokens, state = self.settings.total_tokens, self.state
        self.watchdog = Watchdog(self.machine.hang_seconds)
        with self.watchdog.watching(), self._progress(tokens) as self.shown:
            try:
                if not self.selection.gave_up:
                    self._train()
            finally:
                self.saver.close()
            self.saver.wait(must=True)
        if state.step < self.settings.steps and not self.selection.gave_up:
            self._stop_early()
        if self.world.is_main:
            self._finish(follower)
        self.world.wait()

    def _train(self) -> None:
        seed = self.recipe.seed
        try:
            loop.train(self.state, self.reader, self.micro_batch, seed, self._after_step)
        except torch.OutOfMemoryError as error:
            rows = f"{self.micro_batch} x {self.settings.seq_len} tokens at a time"
            raise UserError(
                f"the device has too little memory for {rows} ({str(error).splitlines()[0]})",
                where="PHASEWISE_MICRO_BATCH_TOKENS",
                hint=f"set it to {max(1, self.micro_batch // 2) * self.settings.seq_len} or less: "
                "the result stays the same; or set recompute: true in the recipe",
                exit_code=BUSY,
            ) from None

    def _after_step(self, state: TrainState, report: StepReport) -> bool:
        """Log, validate and save as due; False ends the loop."""
        self.watchdog.beat()
        self._log(report)
        last = state.step == self.settings.steps
        if last or self.settings.is_due(self.settings.validate_every, state.step):
            self._validate(report)
        stop = self.leaving.due(state.step, report.seconds) or self.selection.gave_up
        # while steps are skipped the weights may be broken already: the older ones are kept
        due = self.settings.is_due(self.settings.checkpoint_every, state.step)
        if last or stop or (due and not state.skipped_in_row):
            self._save()
        return not stop

    def _log(self, report: StepReport) -> None:
        state, tokens = self.state, self.settings.plan.at(self.state.step - 1).tokens
        rate = tokens / report.seconds
        figures = {"tokens_per_second": round(rate, 1)}
        if self.peak_flops:
            figures["mfu"] = round(self.flops_a_token * rate / self.peak_flops, 4)
        self.history.write(
            "train",
            step=state.step,
            tokens=state.tokens,
            loss=report.loss if math.isfinite(report.loss) else None,
            lr=report.lr,
            grad_norm=report.grad_norm,
            **figures,
            seconds=round(report.seconds, 4),
            data_seconds=round(report.data_seconds, 4),
            **report.routing,
        )
        if report.skipped or report.spike:
            what = report.skipped or "spike"
            self.history.write(
                "event", event="skipped" if report.skipped else "spike", step=state.step, why=what
            )
            done = "left the weights alone" if report.skipped else "is a spike"
            print(f"\n    warning: step {state.step:,}, loss {report.loss:.4g}, {done} ({what})",
                  file=sys.stderr)  # fmt: skip
        self.shown.advance(tokens, step=state.step, loss=report.loss)

    @contextmanager
    def _pause(self, why: str) -> Iterator[None]:
        """Time what is not training, and put it on the record."""
        started = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - started, 4)
        self.history.write("pause", step=self.state.step, why=why, seconds=seconds)
        self.watchdog.beat()

    def _validate(self, report: StepReport) -> None:
        state = self.state
        where = {"step": state.step, "tokens": state.tokens}
        norms = layer_norms(state, report.grad_norm)
        if not report.skipped:  # its gradient may not be finite
            self.history.write("layers", **where, grad_norms=norms)
        with self._pause("validation"):
            self.last_validation = validate(state, self.held_out, self.eos_id, self.micro_batch)
        for record in self.last_validation:
            self.history.write("validation", **where, **record)
        with self._pause("samples"):
            drawn = self.samples.draw()
        for record in drawn:
            self.history.write("sample", **where, **record)
        if not state.skipped_in_row and self.selection.see(state.step, self.last_validation):
            self._save()

    def _save(self) -> None:
        """Begin a checkpoint, where this step has none yet."""
        if self.saved_at == self.state.step:
            return
        self.saved_at = self.state.step
        with self._pause("checkpoint"):
            tensors = self.state.tensors()  # all ranks
            self.history.sync()
            if self.world.is_main:
                local = {
                    "history_lines": self.history.lines,
                    "selection": self.selection.record(),
                }
                records = self.state.records(self.run_key, local)
                self.saver.save(self.state.step, tensors, records, self.selection.step)

    def _stop_early(self) -> None:
        if not self.world.is_main:  # the main process says it
            raise SystemExit(self.leaving.exit_code)
        raise UserError(
            f"{self.phase} stopped at step {self.state.step:,} of {self.settings.steps:,}; "
            "its checkpoint is whole",
            hint="run the same command again to go on",
            exit_code=self.leaving.exit_code,
        )

    def _open_history(self) -> None:
        if not self.world.is_main:
            self.history: History = NoHistory()
            return
        self.history = History(self.run / "history.jsonl", self.history_lines)
        if self.resumed_from:
            self.history.write("event", event="resumed", step=self.state.step)
        else:
            self.history.write(
                "run",
                phase=self.phase,
                recipe=self.recipe.name,
                fingerprint=self.run_key.rsplit("/", 1)[1],
                run_key=self.run_key,
                parent=read_json(self.parent / "state.json").get("run_key"),
                total_steps=self.settings.steps,
                total_tokens=self.settings.total_tokens,
                tokens_before=self.tokens_before,
                batch_tokens=self.settings.batch_tokens,
            )
        if self.adopted:
            self.history.write("event", event="adopted", step=self.state.step, changed=self.adopted)

    def _progress(self, tokens: int) -> Any:
        if not self.world.is_main:
            return silent()
        return progress(tokens, "tokens", self.phase, done=self.state.tokens)

    def _finish(self, follower: Follower | None) -> None:
        step = self.selection.chosen or self.state.step
        self.history.write("event", event="finished", step=step)
        self.history.close()
        final = checkpoint.step_folder(self.run, step)
        memory = self.device.memory_bytes()
        summary = place(self.workspace, self.phase, final, self.tokens_before, memory)
        if self.selection.step is not None:
            print(
                f"    best at step {self.selection.step:,}: {self.selection.bits_per_byte:.4f} "
                f"bits a byte on {self.settings.select_on}; the phase ends with step {step:,}"
            )
        print(
            f"    {show_count(summary['tokens_per_second'])} tokens/s, loss {summary['loss']:.4f}, "
            f"{show_seconds(summary['seconds'])} of training, "
            f"{100 * summary['overhead']:.1f} % of it not steps"
        )
        for record in self.last_validation:
            print("    {set} {weights:>4} {bits_per_byte:.4f} bits a byte".format(**record))
        if follower:
            follower.wait()
