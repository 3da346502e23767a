"""Files that are whole or not there.

Everything of value is written under a temporary name beside its final one, synced to the disk,
and renamed; a crash at any moment leaves the old file or the new one, never half of either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tasks.errors import BAD_DATA, BUSY, NO_INPUT, UserError

if TYPE_CHECKING:
    from torch import Tensor


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (a rename is only so once its folder is synced)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its final name only when the block ends without error."""
    with named_when_done(path) as temporary, open(temporary, "wb") as handle:
        yield handle


@contextlib.contextmanager
def named_when_done(path: Path) -> Iterator[Path]:
    """A name beside ``path`` for a file that another writes; it becomes ``path`` as above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_file(path) as handle:
        handle.write(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one fixed form (indented, no NaN), so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, named: dict[str, Tensor]) -> None:
    """Write a safetensors file, in place: for a folder that takes its name when it is whole.

    Raises OSError where the system refuses (safetensors hides that in an error of its own, and who
    trains on after a full disk looks for an OSError).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(named, path, metadata={"format": "pt"})
    except SafetensorError as error:
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError where it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing", exit_code=NO_INPUT) from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, no end of digits or brackets
        raise UserError(f"{path} is not valid JSON: {error}", exit_code=BAD_DATA) from None


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder that replaces ``path`` only when the block ends without error.

    Whatever stood at ``path`` is removed after the new folder is complete and synced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        if not alive(int(stale.name.rsplit(".", 2)[1])):
            shutil.rmtree(stale)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        if path.exists():
            shutil.rmtree(path)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard link, or copy where the file system has none: no second copy of large weights."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder under ``folder``."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root) / name, "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(root))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), as hex."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file for the life of the block; the kernel frees it even after ``kill -9``.

    Raises UserError (exit code 75) naming the holder where another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise UserError(
            f"{path.parent} is in use by process {holder}",
            hint="wait for it to end, or stop it; then run the same command again",
            exit_code=BUSY,
        ) from None
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock file at ``path``."""
    if not path.exists():
        return False
    with open(path, "rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def alive(pid: int) -> bool:
    """Whether a process of that number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
