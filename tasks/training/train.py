"""Stage `train`: one phase, from its start to checkpoints/<phase>, through any interruption.

runs/<phase>/        lock, identity, history, running checkpoints   (ours; DVC never deletes it)
    -> checkpoints/<phase>/   the last checkpoint, whole             (the stage's output)
    -> metrics/<phase>/       history, curves, summary               (the stage's record)
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
from types import FrameType
from typing import Any

from tasks import stage
from tasks.errors import BUSY, UserError
from tasks.files import atomic_folder, exclusive, link_or_copy, read_json, write_json
from tasks.process import die_with_parent
from tasks.progress import progress
from tasks.recipe import Recipe
from tasks.settings import settings as machine_settings
from tasks.units import show_count, show_seconds
from tasks.workspace import Workspace


def train(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Train one phase and place it at checkpoints/<phase>.

    Goes on from the newest whole running checkpoint in runs/<phase>, with the same bytes as if it
    had never stopped. SIGTERM and Ctrl-C finish the step, write a checkpoint and leave (a second
    one leaves at once). A run folder that belongs to other inputs is set aside, aloud.
    """
    die_with_parent(signal.SIGTERM)
    run = workspace.run(phase)
    run.mkdir(parents=True, exist_ok=True)
    with exclusive(run / ".lock"):
        Trainer(workspace, recipe, phase).run_to_end()


class Trainer:
    """One phase being trained: what surrounds the loop."""

    def __init__(self, workspace: Workspace, recipe: Recipe, phase: str) -> None:
        from tasks.files import fingerprint
        from tasks.tokens.mixture import load_mix
        from tasks.tokens.reader import Reader
        from tasks.training import checkpoint, identity
        from tasks.training.device import micro_batch_size, open_device
        from tasks.training.state import TrainState
        from tasks.training.validate import held_out_sets

        self.workspace, self.recipe, self.phase = workspace, recipe, phase
        self.settings = recipe.phases[phase]
        self.machine = machine_settings()
        self.run = workspace.run(phase)
        mix = load_mix(workspace.mix(phase))
        self.identity = identity.identity(workspace, recipe, phase, mix.fingerprint)
        identity.claim(self.run, self.identity, self.machine.restart)
        self.run_key = f"{recipe.name}/{phase}/{fingerprint(self.identity)[:16]}"
        self.device = open_device(self.machine, self.settings.precision)
        self.micro_batch = micro_batch_size(self.machine, self.settings)
        self.reader = Reader(workspace, mix)
        self.held_out = held_out_sets(
            workspace, recipe, self.settings.validation_tokens, ("validation",)
        )
        self.eos_id = read_json(workspace.tokenizer / "report.json")["eos_id"]
        self.resumed_from = checkpoint.newest(self.run)
        parent = workspace.checkpoint(self.settings.starts_from)
        self.parent_key = read_json(parent / "state.json").get("run_key")
        arguments = (phase, self.settings, self.device)
        self.state = (
            TrainState.resume(*arguments, self.resumed_from)
            if self.resumed_from
            else TrainState.start(*arguments, parent)
        )
        self.tokens_before = sum(
            recipe.phases[p].steps * recipe.phases[p].batch_tokens for p in recipe.parents(phase)
        )
        self.last_validation: list[dict[str, Any]] = []
        self.leaving: int | None = None

    def run_to_end(self) -> None:
        """Train what is left, then place the phase."""
        from tasks.training import loop

        self._preflight()
        self._open_history()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        follower = self._follow()
        tokens = self.settings.steps * self.settings.batch_tokens
        with progress(tokens, "tokens", self.phase, done=self.state.tokens) as self.shown:
            loop.train(
                self.state, self.reader, self.micro_batch, self.recipe.seed, self._after_step
            )
        if self.state.step < self.settings.steps:
            self.history.close()
            self._stop_early()
        self._finish(follower)

    def _preflight(self) -> None:
        settings, state = self.settings, self.state
        parameters = sum(p.numel() for p in state.model.parameters())
        passes = settings.batch_size // self.micro_batch
        print(f"    {parameters:,} parameters on {self.device.describe()}")
        print(
            f"    {show_count(settings.tokens)} tokens in {settings.steps:,} steps of "
            f"{settings.batch_tokens:,} ({passes} x {self.micro_batch} samples of "
            f"{settings.seq_len}), from {settings.starts_from}"
        )
        if self.resumed_from:
            print(f"    going on from step {state.step:,} ({self.resumed_from.name})")
            threads = read_json(self.resumed_from / "state.json")["threads"]
            import torch

            if threads != torch.get_num_threads():
                print(f"    warning: {torch.get_num_threads()} threads, {threads} before: "
                      "sums may differ in their last bits")  # fmt: skip

    def _open_history(self) -> None:
        from tasks.training.history import History

        lines = 0
        if self.resumed_from:
            lines = read_json(self.resumed_from / "local.json")["history_lines"]
        self.history = History(self.run / "history.jsonl", lines)
        if self.resumed_from:
            self.history.write("event", event="resumed", step=self.state.step)
            return
        self.history.write(
            "run",
            phase=self.phase,
            recipe=self.recipe.name,
            fingerprint=self.run_key.rsplit("/", 1)[1],
            run_key=self.run_key,
            parent=self.parent_key,
            total_steps=self.settings.steps,
            total_tokens=self.settings.steps * self.settings.batch_tokens,
            tokens_before=self.tokens_before,
            batch_tokens=self.settings.batch_tokens,
        )

    def _after_step(self, state: Any, report: Any) -> bool:
        """Log, validate and save as due; False ends the loop."""
        self.history.write(
            "train",
            step=state.step,
            tokens=state.tokens,
            loss=report.loss,
            lr=report.lr,
            grad_norm=report.grad_norm,
            tokens_per_second=round(self.settings.batch_tokens / report.seconds, 1),
            **report.routing,
        )
        self.shown.advance(self.settings.batch_tokens, step=state.step, loss=report.loss)
        last = state.step == self.settings.steps
        stop = self.leaving is not None or state.step == self.machine.stop_at_step
        if last or self._due(self.settings.validate_every):
            self._validate()
        if last or stop or self._due(self.settings.checkpoint_every):
            self._save()
        return not stop

    def _due(self, every: float) -> bool:
        return self.state.step % self.settings.interval_steps(every) == 0

    def _validate(self) -> None:
        from tasks.training.validate import validate

        self.last_validation = validate(self.state, self.held_out, self.eos_id, self.micro_batch)
        for record in self.last_validation:
            self.history.write(
                "validation", step=self.state.step, tokens=self.state.tokens, **record
            )

    def _save(self) -> None:
        from tasks.training import checkpoint

        self.history.sync()
        folder = checkpoint.step_folder(self.run, self.state.step)
        local = {"history_lines": self.history.lines}
        self.state.save(folder, self.run_key, local)
        checkpoint.prune(self.run, self.machine.keep_checkpoints)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        if self.leaving is not None:
            os._exit(128 + number)
        self.leaving = number
        print("\n    leaving after this step; once more to leave at once", file=sys.stderr)

    def _stop_early(self) -> None:
        raise UserError(
            f"{self.phase} stopped at step {self.state.step:,} of {self.settings.steps:,}; "
            "its checkpoint is whole",
            hint="run the same command again to go on",
            exit_code=128 + self.leaving if self.leaving else BUSY,
        )

    def _follow(self) -> subprocess.Popen[bytes] | None:
        """Start the process that feeds MLflow; training neither waits for it nor needs it."""
        if not self.machine.track:
            return None
        follow = [sys.executable, "-m", "tasks.release.tracking", "follow"]
        with open(self.run / "tracking.log", "ab") as log:
            # its own session and output: it may outlive the trainer's terminal by a moment
            return subprocess.Popen(
                [*follow, str(self.run), str(os.getpid())],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _finish(self, follower: subprocess.Popen[bytes] | None) -> None:
        summary = self._summary()
        self.history.write("event", event="finished", step=self.state.step)
        self.history.close()
        self._place(summary)
        print(
            f"    {show_count(summary['tokens_per_second'])} tokens/s, loss {summary['loss']:.4f}, "
            f"{show_seconds(summary['seconds'])} of training"
        )
        for record in self.last_validation:
            print("    {set} {weights:>4} {bits_per_byte:.4f} bits a byte".format(**record))
        if follower:
            self._await(follower)

    def _await(self, follower: subprocess.Popen[bytes]) -> None:
        """Give MLflow a moment to take the last records; it catches up later where it cannot."""
        try:
            behind = follower.wait(timeout=30) != 0
        except subprocess.TimeoutExpired:
            behind = True
        if behind:
            print(
                f"    MLflow is behind ({self.run / 'tracking.log'}); the stage `register` and "
                "`phasewise sync` bring it up to date"
            )

    def _summary(self) -> dict[str, Any]:
        from tasks.training.history import read_history

        records = read_history(self.run / "history.jsonl")
        losses = [r["loss"] for r in records if r["kind"] == "train"]
        speeds = [r["tokens_per_second"] for r in records if r["kind"] == "train"]
        tail = losses[-max(1, len(losses) // 50) :]
        summary = {
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "loss": statistics.fmean(tail),
            "tokens_per_second": statistics.median(speeds),
            "seconds": round(sum(self.settings.batch_tokens / s for s in speeds), 1),
            "memory_bytes": self.device.memory_bytes(),
            "skipped_steps": self.state.skipped,
            "resumed": sum(r.get("event") == "resumed" for r in records),
        }
        return summary

    def _place(self, summary: dict[str, Any]) -> None:
        """Copy the last checkpoint and the record to where DVC takes them."""
        from tasks.training import checkpoint
        from tasks.training.history import read_history, write_curves

        final = checkpoint.step_folder(self.run, self.state.step)
        with atomic_folder(self.workspace.checkpoint(self.phase)) as folder:
            for path in sorted(final.iterdir()):
                if path.name not in ("local.json", checkpoint.MANIFEST):
                    link_or_copy(path, folder / path.name)
            checkpoint.seal(folder)
        with atomic_folder(self.workspace.metrics(self.phase)) as folder:
            shutil.copy(self.run / "history.jsonl", folder)
            write_curves(read_history(folder / "history.jsonl"), folder, self.tokens_before)
            write_json(folder / "summary.json", summary)


if __name__ == "__main__":
    stage.main(train, "phase")
