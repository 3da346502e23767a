"""Start one training process a GPU, or as many as the setting says, through torchrun.

    PHASEWISE_LAUNCH=auto   a process for each GPU; one where there is none
    PHASEWISE_LAUNCH=4      four on this machine
    torchrun --nnodes 2 ... -m tasks.training.train phase1     several machines: started by hand,
                                                               or by a cluster, once on each

The number is no part of a recipe: the same samples make the same steps.

Processes of one machine meet at a file and talk over the loopback interface. torch's own meeting
place listens on every interface, and takes pickles from whoever connects; several machines need it,
so they belong in a network of their own.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

from tasks.errors import INTERNAL, UserError
from tasks.files import read_json
from tasks.settings import Settings

EXIT = "exit.json"  # in a running folder: exit code of its main process, for who started it


def processes(machine: Settings) -> int:
    """Training processes of this machine."""
    if machine.launch != "auto":
        return machine.launch
    import torch

    wanted = machine.device in ("auto", "cuda")
    return max(1, torch.cuda.device_count()) if wanted else 1


def launch(run: Path, root: Path, phase: str, count: int, cores: int) -> None:
    """Train a phase in ``count`` processes and wait for them.

    SIGTERM and Ctrl-C go on to them, so that they write a checkpoint and leave. Ends this process
    with the exit code of the main one where that left with a word of its own; raises UserError
    where one ended without.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say it below
    ended = run / EXIT
    ended.unlink(missing_ok=True)
    command = ["-m", "tasks.training.train", phase, "--root", str(root)]
    try:
        with tempfile.TemporaryDirectory(prefix="phasewise-", ignore_cleanup_errors=True) as place:
            config = LaunchConfig(
                min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d",
                rdzv_endpoint=f"{place}/launcher", rdzv_configs={"store_type": "file"},
                max_restarts=0, monitor_interval=0.2,
            )  # fmt: skip
            stay_local(Path(place))
            elastic_launch(config, sys.executable)(*command)
        return
    except (ChildFailedError, SignalException):
        if ended.exists():  # the main process has said what it is
            raise SystemExit(read_json(ended)) from None
    raise UserError(
        f"one of the {count} training processes of {phase} ended unexpectedly",
        hint="its last words stand above; run the same command again to go on from the last "
        "checkpoint",
        exit_code=INTERNAL,
    )


def stay_local(place: Path) -> None:
    """Have the processes that are started from here meet in the folder, and talk over loopback."""
    from tasks.training.world import STORE

    os.environ[STORE] = str(place / "world")
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else the launcher listens for them
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
