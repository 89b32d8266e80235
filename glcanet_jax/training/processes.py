"""Several processes that train one run: how they find each other, meet, and end together.

Each of them reads its share of every batch; process 0 alone prints, logs and writes. They meet at barriers of JAX's
coordination service, which may take hours; a collective of CPU devices (Gloo) gives up after 30 seconds.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import io
import itertools
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from glcanet_jax.errors import UserError

HEARTBEAT = 30  # seconds after which a process that is not heard of has ended
PATIENCE = 300  # seconds in which all processes must have begun
LONGEST = 7 * 24 * 3600 * 1000  # milliseconds that what one of them does alone may take
LOST = "another process of this run has ended, or cannot be reached; the same commands go on from the last checkpoint"
UNREACHED = "gloo|nccl|coordination|connection|socket|barrier|heartbeat|unavailable"  # in errors of JAX and Orbax
GIVEN = r"(?P<host>\[[^\]]+\]|[^,\s:]+):(?P<port>\d+),(?P<count>\d+),(?P<number>\d+)"

_numbers = itertools.count()  # of the meetings so far, alike in all processes
_kept: list[Any] = []  # what compiled code calls must stay
_told: list[UserError] = []  # what this process ends with


# ------------------------------------------------------------------------------------------------------------ beginning
def begin(told: str = "auto") -> None:
    """Join the other processes of the run, before anything else is asked of JAX; nothing happens where there are none.

    Args:
        told: ``HOST:PORT,COUNT,NUMBER``: where process 0 listens, how many there are, which of them this is; ``auto``: as the
            cluster says (:func:`cluster`); ``off``: this is the only one.

    Raises:
        UserError: that is none of these, or process 0 cannot be reached.
    """
    given = {} if told == "auto" else _parsed(told)
    if told == "off" or jax.distributed.is_initialized() or (told == "auto" and cluster() is None):
        return
    if given.get("process_id"):
        _find(given["coordinator_address"])
    _end_in_a_line()
    if told == "auto" and cluster() == "JAX":
        given = {"num_processes": int(os.environ["JAX_NUM_PROCESSES"]), "process_id": int(os.environ["JAX_PROCESS_ID"])}
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run cannot join ({str(error).splitlines()[0]}); give --distributed HOST:PORT,COUNT,NUMBER, "
            "or --distributed off for one that is alone"
        ) from error


def cluster() -> str | None:
    """What started this process as one of several: Slurm, Open MPI, Kubernetes, or JAX's own variables; None if nothing did."""
    env = os.environ
    if {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} <= env.keys():
        return "JAX"
    if "SLURM_STEP_NODELIST" in env and _number(env.get("SLURM_NTASKS")) > 1:
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in env and _number(env.get("OMPI_COMM_WORLD_SIZE")) > 1:
        return "Open MPI"
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys()  # a Job whose pods know their number
    return "Kubernetes" if indexed and importlib.util.find_spec("kubernetes") else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _parsed(told: str) -> dict[str, Any]:
    found = re.fullmatch(GIVEN, told)
    if told == "off":
        return {}
    if found is None or not 0 <= int(found["number"]) < int(found["count"]) or not 0 < int(found["port"]) < 2**16:
        raise UserError(
            f"--distributed is {told!r}; it must be auto, off, or HOST:PORT,COUNT,NUMBER: where process 0 listens, how many "
            "processes there are, and which of them this is, from 0, as 10.0.0.1:1234,2,0"
        )
    return {
        "coordinator_address": f"{found['host']}:{found['port']}",
        "num_processes": int(found["count"]),
        "process_id": int(found["number"]),
    }


def _find(address: str) -> None:
    """Wait until process 0 listens: JAX itself would end without a word of ours.

    Raises:
        UserError: it does not.
    """
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise UserError(
                    f"process 0 does not listen at {address} ({error.strerror or error}); start it there with the same command and "
                    "number 0, or give its address"
                ) from error
        time.sleep(0.2)


def _end_in_a_line() -> None:
    """JAX aborts a process whose run has lost another one, behind a page about its insides; here it ends with a line.

    The page goes wherever the standard error's descriptor leads, in training to ``messages.log``.
    """
    if os.name == "nt":
        return

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def end(_: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), b"" if _told else f"error: {LOST}\n".encode())
        os._exit(2)

    _kept.append(end)
    ctypes.CDLL(None).signal(signal.SIGABRT, end)
    atexit.register(_end_at_once)


def _end_at_once() -> None:
    """A process that has told why it ends does not wait for the others, as JAX would: they end by themselves."""
    if _told:
        if first():
            time.sleep(1)  # with it ends what the others hear from each other by: they tell their own line before
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2)


# -------------------------------------------------------------------------------------------------------------- together
def several() -> bool:
    return jax.process_count() > 1


def first() -> bool:
    """Whether this process prints, logs and writes."""
    return jax.process_index() == 0


def _client() -> Any:
    from jax._src import distributed  # what JAX offers in public are collectives, which do not wait

    return distributed.global_state.client


def meet(what: str) -> None:
    """Wait for all processes, however long they take."""
    if several():
        _client().wait_at_barrier(f"glcanet/{next(_numbers)}/{what}", LONGEST)


@contextlib.contextmanager
def led(what: str) -> Iterator[bool]:
    """True in process 0, which does something alone; the others come here, wait for it, and fail as it does.

    Raises:
        UserError: it failed, in all of them.
    """
    if not several():
        yield True
        return
    key = f"glcanet/{next(_numbers)}/{what}"
    failure = "-"
    if first():
        try:
            yield True
        except UserError as error:
            failure = str(error)
        _client().key_value_set(key, failure)
    else:
        yield False
        failure = _client().blocking_key_value_get(key, LONGEST)
    if failure != "-":
        meet("failed")  # or the first would be gone before the others know
        raise UserError(failure)


def summed(what: str, numbers: np.ndarray) -> np.ndarray:
    """The sum of an array over all processes, to the last digit: by way of hosts, not of devices."""
    if not several():
        return numbers
    key = f"glcanet/{next(_numbers)}/{what}"
    _client().key_value_set_bytes(f"{key}/{jax.process_index()}", numbers.tobytes())
    shares = (
        _client().blocking_key_value_get_bytes(f"{key}/{process}", LONGEST) for process in range(jax.process_count())
    )
    return sum(np.frombuffer(share, numbers.dtype).reshape(numbers.shape) for share in shares)


def share(things: Any) -> Any:
    """Those of a sequence that this process looks at."""
    return things[jax.process_index() :: jax.process_count()]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What processes other than the first print inside is not seen; and errors of a lost process are told in a line.

    Raises:
        UserError: a collective failed, as another process has ended.
    """
    silence = contextlib.nullcontext() if first() else contextlib.redirect_stdout(io.StringIO())
    with silence:
        try:
            yield
        except UserError as error:
            _told.append(error)
            raise
        except Exception as error:  # of whatever waited for the other process
            if not (several() and re.search(UNREACHED, f"{error} {error.__cause__}", re.IGNORECASE)):
                raise
            _told.append(UserError(LOST))
            raise _told[-1] from error


def placed(tree: Any, sharding: Any) -> Any:
    """Arrays that every process has, on all devices of all processes."""
    if not several():
        return jax.device_put(tree, sharding)

    def place(x: Any) -> jax.Array:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(x)))
        own = np.asarray(x)
        return jax.make_array_from_callback(own.shape, sharding, lambda at: own[at])

    return jax.tree.map(place, tree)
