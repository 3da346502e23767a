"""Stage `train`: one phase, from its start to checkpoints/<phase>, through any interruption.

runs/<phase>/        lock, identity, history, running checkpoints   (ours; DVC never deletes it)
    -> checkpoints/<phase>/   the chosen checkpoint, whole           (the stage's output)
    -> metrics/<phase>/       history, curves, summary               (the stage's record)
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from tasks import stage
from tasks.errors import UserError
from tasks.files import exclusive, write_json
from tasks.process import die_with_parent
from tasks.recipe import Recipe
from tasks.settings import settings
from tasks.training.launch import EXIT, launch, processes
from tasks.workspace import Workspace


def train(workspace: Workspace, recipe: Recipe, phase: str) -> None:
    """Train one phase and place it at checkpoints/<phase>.

    Goes on from the newest whole running checkpoint in runs/<phase>, with the same bytes as if it
    had never stopped. SIGTERM and Ctrl-C finish the step, write a checkpoint and leave (a second
    one leaves at once). A run folder that belongs to other inputs is set aside, aloud. With
    PHASEWISE_LAUNCH, or one process a GPU, it runs in several processes.
    """
    run, machine = workspace.run(phase), settings()
    run.mkdir(parents=True, exist_ok=True)
    count = 1 if stage.one_of_many() else processes(machine)
    if count > 1:
        die_with_parent(signal.SIGTERM)
        launch(run, workspace.root, phase, count, machine.cores)
        return
    from tasks.training.trainer import Trainer
    from tasks.training.world import join_world

    die_with_parent(signal.SIGTERM)
    with join_world(machine.device) as world, contextlib.ExitStack() as held:
        if world.is_main:
            held.enter_context(exclusive(run / ".lock"))
        else:  # what the main process says is enough
            sys.stdout = held.enter_context(open(os.devnull, "w"))
        try:
            Trainer(workspace, recipe, phase, world).run_to_end()
        except UserError as error:
            if stage.one_of_many() and world.is_main:
                write_json(run / EXIT, error.exit_code)
            raise


if __name__ == "__main__":
    stage.main(train, "phase")
