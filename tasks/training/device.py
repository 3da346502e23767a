"""What a phase runs on: device, precision, threads, and how much goes into one forward pass."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from tasks.errors import UserError
from tasks.recipe import Phase
from tasks.settings import Settings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of the matrix work on it (weights stay fp32)."""

    torch_device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16 (Micikevicius et al. 2018); does nothing in other precisions."""
        return torch.amp.GradScaler(self.torch_device.type, enabled=self.dtype is torch.float16)

    def describe(self) -> str:
        if self.torch_device.type == "cuda":
            name = torch.cuda.get_device_name(self.torch_device)
        else:
            name = f"{platform.machine()}, {torch.get_num_threads()} threads"
        return f"{self.torch_device.type} ({name}), {str(self.dtype).removeprefix('torch.')}"

    def memory_bytes(self) -> int:
        """Peak memory: of the device on CUDA, of the process elsewhere."""
        if self.torch_device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.torch_device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def open_device(settings: Settings, precision: str, local_rank: int = 0) -> Device:
    """The device that the settings name, or the best there is for 'auto'.

    Args:
        local_rank: of a process that shares this machine with others: it takes that GPU.

    Raises UserError where a named device is not there.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = settings.device
    if name == "auto":
        name = "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    elif not there[name]:
        raise UserError(
            f"torch finds no {name} device on this machine",
            where="PHASEWISE_DEVICE",
            hint="set it to auto or cpu; `phasewise doctor` shows what there is",
        )
    if name == "cpu" and precision == "fp16":
        print("    warning: fp16 is emulated on a CPU and very slow; with "
              "-S training.precision=bf16 it is not")  # fmt: skip
    if name == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.deterministic = True
    device = torch.device(name, local_rank) if name == "cuda" else torch.device(name)
    return Device(device, _DTYPES[precision])


def micro_batch_size(settings: Settings, phase: Phase) -> int:
    """Samples of one forward pass: as many as the setting allows, evenly dividing the batch."""
    most = max(1, min(phase.batch_size, settings.micro_batch_tokens // phase.seq_len))
    return next(n for n in range(most, 0, -1) if phase.batch_size % n == 0)


# Dense bf16 and fp16 matrix rate with fp32 sums, FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def peak_flops(device: Device) -> float | None:
    """What MFU is measured against; None where the device or the precision is not in the table."""
    if device.torch_device.type != "cuda" or device.dtype is torch.float32:
        return None
    return known_peak(torch.cuda.get_device_name(device.torch_device))


def known_peak(name: str) -> float | None:
    """The peak of a device by the name that its driver gives it."""
    known = [key for key in PEAK_FLOPS if name == key or name.startswith((f"{key} ", f"{key}-"))]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def matrix_flops(device: Device, size: int = 1024, seconds: float = 0.5) -> float:
    """FLOPs a second of a square matrix product in the device's precision, measured now."""
    import time

    a = torch.randn(size, size, device=device.torch_device, dtype=device.dtype)

    def product() -> None:
        torch.mm(a, a)
        if device.torch_device.type == "cuda":
            torch.cuda.synchronize()

    product()
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        product()
        count += 1
    return count * 2 * size**3 / elapsed
