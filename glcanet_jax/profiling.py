"""What a run takes of the machine."""

import resource
import sys

import jax


def peak_memory() -> dict[str, float]:
    """Megabytes: the host process's peak, and the device's where it says."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    device = jax.local_devices()[0].memory_stats() or {}
    out = {"memory/host_peak_mb": round(host, 1)}
    if "peak_bytes_in_use" in device:
        out["memory/device_peak_mb"] = round(device["peak_bytes_in_use"] / 2**20, 1)
    return out


def free_device_memory() -> int | None:
    """Bytes that the first device's allocator can still give; None where it does not say (CPUs)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None


def resident_memory() -> int:
    """Bytes of the host's memory that this process holds now, its peak where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return int(peak_memory()["memory/host_peak_mb"] * 2**20)
