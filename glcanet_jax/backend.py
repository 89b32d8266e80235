"""How JAX compiles and computes for all commands: its cache on disk, precision, and what repeats to the bit."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

REPRODUCIBLE = {"xla_gpu_exclude_nondeterministic_ops": True}  # of XLA for GPUs; others have no such operations


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless the user has said where or no, or there is no place for them."""
    if jax.config.jax_compilation_cache_dir is None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = cache_folder("xla")
        if cache is not None:
            jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # a network starts with hundreds of small programs, which take half of a second start if they are left out
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compiler_options(deterministic: bool) -> dict[str, Any]:
    """What the compiler of the device is told."""
    return REPRODUCIBLE if deterministic and jax.default_backend() in ("gpu", "cuda", "rocm") else {}


@contextlib.contextmanager
def computing(precision: str, deterministic: bool = False) -> Iterator[None]:
    """Products of float32 values in a precision (``default``, ``highest``) inside, in all threads.

    With ``deterministic`` all programs leave out operations whose bits differ from run to run: XLA hears of it when it is first
    used, so that this is for commands, which begin with it.
    """
    if deterministic:
        flags = " ".join(f"--{name}=true" for name in REPRODUCIBLE)
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", None if precision == "default" else precision)
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def cache_folder(kind: str) -> Path | None:
    """Where this user's compiled programs of a kind lie; None for a user without a home, or with one that cannot be written to.

    Programs are run as they lie there, so that nobody else may write them: the folder is the user's alone (0700), and
    one that is not is not used.
    """
    try:
        above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glcanet_jax"
        for folder in (above, cache := above / kind):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _made_ours(folder):
                print(
                    f"compiled programs are not kept: others can write to {folder}; remove it, or name another folder as "
                    f"{'JAX_COMPILATION_CACHE_DIR' if kind == 'xla' else 'XDG_CACHE_HOME'}"
                )
                return None
    except (OSError, RuntimeError):  # the latter: there is no home
        return None
    return cache if os.access(cache, os.W_OK) else None


def _made_ours(folder: Path) -> bool:
    """Whether a folder and all in it is this user's; it is closed to others if it was open."""
    if not hasattr(os, "geteuid"):  # Windows: a user's folders are closed to others
        return True
    found = folder.stat()
    if found.st_uid != os.geteuid():
        return False
    if found.st_mode & 0o077:
        folder.chmod(0o700)
        if found.st_mode & 0o022:  # what lies in it may be somebody else's
            return all(entry.stat(follow_symlinks=False).st_uid == os.geteuid() for entry in os.scandir(folder))
    return True
