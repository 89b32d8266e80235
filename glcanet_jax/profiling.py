"""What a run takes of the machine."""

import contextlib
import ctypes
import functools
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from glcanet_jax.errors import UserError

DONT_NEED = 4  # of Linux's madvise


def peak_memory() -> dict[str, float]:
    """Megabytes: the host process's peak, and the device's where it says."""
    host = _status("VmHWM")
    if host is None:  # not on Linux. (There this would be the parent's, if that was larger when it started us.)
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)
    device = jax.local_devices()[0].memory_stats() or {}
    out = {"memory/host_peak_mb": round(host / 2**20, 1)}
    if "peak_bytes_in_use" in device:
        out["memory/device_peak_mb"] = round(device["peak_bytes_in_use"] / 2**20, 1)
    return out


def _status(key: str) -> int | None:
    """Bytes that Linux notes of this process under a name, None elsewhere."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        return None


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library of this process; opened once, since each handle brings a class of its own, which waits for the collector.

    Raises TypeError where libraries have to be named (Windows).
    """
    return ctypes.CDLL(None)


def release_memory() -> None:
    """Have the C library give back what it holds but nobody uses, so that fragments do not add up in a long run.

    Nothing happens where it cannot (glibc can).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        _libc().malloc_trim(0)


def release_mapped(path: Path) -> None:
    """Have the system take back the memory in which a file lies that libraries have mapped into this process, only to read it.

    Whoever reads it again finds it as it was. Nothing happens where it cannot (Linux can).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError, ValueError):
        libc, wanted = _libc(), os.path.realpath(path)
        for line in Path("/proc/self/maps").read_text().splitlines():
            places, rights, _, _, _, *name = line.split(maxsplit=5)
            if name == [wanted] and "w" not in rights:  # what was written into a mapping would be lost
                begin, end = (int(place, 16) for place in places.split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), DONT_NEED)


def free_device_memory() -> int | None:
    """Bytes that the first device's allocator can still give; None where it does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def free_memory() -> int | None:
    """Bytes that programs can still take: of the first device, or of the host where that is the device; None if nobody says."""
    if jax.default_backend() != "cpu":
        return free_device_memory()
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def require_memory(what: str, sizes: dict[str, int], resident: int, mend: str, *, tell: bool = True) -> None:
    """Say what a program needs before it runs (if ``tell``), and refuse one that cannot have it.

    Args:
        sizes: of :func:`program_memory`; resident: bytes that lie on the device already, of which its arguments may be a part.

    Raises:
        UserError: it needs more than is free; ``mend`` says what makes it less.
    """
    free, more = free_memory(), sizes["total"] - min(resident, sizes["arguments"])
    have = "" if free is None else f"; {in_units(free)} are free"
    if tell:
        print(f"{what} needs {in_units(resident + more)}, {in_units(more)} of it while it runs{have}", flush=True)
    if free is not None and more > free:
        raise UserError(f"{what} needs {in_units(more)} more memory, {in_units(free)} are free; {mend}")


def in_units(count: int) -> str:
    """Bytes in words, as 303 MB or 4.2 GB."""
    return f"{count / 2**20:.0f} MB" if count < 2**30 else f"{count / 2**30:.1f} GB"


def parse_bytes(text: str, option: str = "--memory-budget") -> int:
    """``4GB``, ``800 MB``, ``1.5GiB`` or a number of bytes, 1 MB at least; a MB is of 1024 x 1024 bytes.

    Raises:
        UserError: anything else; ``option`` is what it was given for.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])i?)?b?\s*", text.lower())
    count = float(match.group(1)) * 1024 ** " kmgt".index(match.group(2) or " ") if match else 0.0
    if not 0 < count < 2**60:
        raise UserError(f"{option} is {text[:60]!r}; it must be a size as 800MB or 4GB")
    if count < 2**20:
        raise UserError(
            f"{option} is {text!r}, {count:.0f} bytes, which is less than the least, 1 MB; give a size as 800MB or 4GB"
        )
    return int(count)


def allocator_peak() -> int | None:
    """Most bytes that the first device's allocator has given out at once in this process; None where it does not say (CPUs).

    It begins with the process and cannot be set back: one measurement needs one process.
    """
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def restart_host_peak() -> bool:
    """Have the host's peak (:func:`peak_memory`) count from now on; False where it cannot (Linux can)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def recorded(folder: Path | None) -> Iterator[None]:
    """Write what runs inside into a folder; nothing without one.

    A trace (``plugins/profile``, for TensorBoard and Perfetto), and ``device_memory.prof``, the arrays that were on the device
    at the end and what made them (for ``pprof``). What a program uses while it runs is not in the latter.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        yield
    jax.profiler.save_device_memory_profile(str(folder / "device_memory.prof"))


def program_memory(program: Any) -> dict[str, int]:
    """Bytes of a compiled program: arguments, outputs that are not arguments' memory, temporaries, and their total."""
    analysis = program.memory_analysis()
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values())}


def machine() -> dict[str, Any]:
    """What a measurement was made with: device, cores, versions, day."""
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }


def in_words(made: Mapping[str, Any]) -> str:
    """What :func:`machine` said, short."""
    return f"{made['device']}, {made['cores']} cores, jax {made['jax']}, {made['date']}"


def device_name() -> str:
    """The first device's kind; of a CPU its model, where Linux tells it."""
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return kind


def resident_memory() -> int:
    """Bytes of the host's memory that this process holds now, its peak where the system does not say."""
    return _status("VmRSS") or int(peak_memory()["memory/host_peak_mb"] * 2**20)


def process_device_memory() -> float | None:
    """Megabytes of the first NVIDIA GPU that this process holds, as the driver counts; None without one.

    With jax's preallocation on that is three quarters of the device: set ``XLA_PYTHON_CLIENT_PREALLOCATE=false``.
    """
    if jax.default_backend() != "gpu":
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    used = {
        int(pid): float(mb)
        for pid, mb in (row.split(",") for row in rows if row.count(",") == 1)
        if mb.strip().isdigit()
    }
    return used.get(os.getpid(), next(iter(used.values())) if len(used) == 1 else None)  # in containers pids may differ
