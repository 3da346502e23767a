"""The machine in words: a figure of speed says nothing without it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_VECTORS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "sve")


def hardware() -> str:
    """Processor, cores, threads and the vector instructions that decide speed; the GPU if any."""
    import torch

    flags = [flag for flag in _VECTORS if flag in _cpu("flags").split()]
    processor = _cpu("model name") or platform.processor() or platform.machine()
    text = f"{processor}, {_cores()} cores, {torch.get_num_threads()} torch threads"
    if flags:
        text += f", {' '.join(flags)}"
    if torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu(key: str) -> str:
    """A line of /proc/cpuinfo; nothing where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
