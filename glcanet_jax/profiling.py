"""What a run takes of the machine."""

import contextlib
import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import jax


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


def release_memory() -> None:
    """Have the C library give back what it holds but nobody uses, so that fragments do not add up in a long run.

    Nothing happens where it cannot (glibc can).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_device_memory() -> int | None:
    """Bytes that the first device's allocator can still give; None where it does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


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
