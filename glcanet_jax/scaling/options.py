"""What can be asked for when maps are made by several processes."""

import re
from dataclasses import dataclass
from typing import Annotated

from glcanet_jax.errors import UserError
from glcanet_jax.limits import Range, check_fields

ENGINE = "ray"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Processes that share the work, of this machine or of many."""

    # ray, or ray:ADDRESS of a cluster that runs, as ray:auto or ray:10.0.0.1:6379; without: this process does all
    on: str | None = None
    workers: Annotated[int | None, Range(1, 2**14)] = (
        None  # processes with a network; without: as many as there is room for
    )
    # cores that each takes, and then no GPU unless --gpus-per-worker asks for it; without: 1 beside a GPU, else 4 or all
    cpus_per_worker: Annotated[int | None, Range(1, 2**10)] = None
    gpus_per_worker: Annotated[int | None, Range(0, 64)] = None  # without: 1 where the cluster has GPUs, else 0
    retries: Annotated[int, Range(0, 1000)] = (
        3  # of a scene that failed, or whose worker died, until the rest goes on without it
    )

    def __post_init__(self):
        check_fields(self, "--")
        if self.on is not None:
            address_of(self.on)
            return
        for name in ("workers", "cpus_per_worker", "gpus_per_worker", "retries"):
            if (value := getattr(self, name)) != getattr(type(self), name):  # its default
                raise UserError(
                    f"--{name.replace('_', '-')} is {value}, but one process does all; give --on {ENGINE}, too, or leave it out"
                )

    @property
    def address(self) -> str | None:
        """Of the cluster; None: one of this machine's own."""
        return None if self.on is None else address_of(self.on)


def address_of(on: str) -> str | None:
    """The address in ``ray:ADDRESS``; None of ``ray`` alone.

    Raises:
        UserError: it is neither.
    """
    match = re.fullmatch(rf"{ENGINE}(?::([!-~]+))?", on)
    if match is None:
        raise UserError(
            f"--on is {on[:60]!r}; it must be {ENGINE}, or {ENGINE}:ADDRESS, as {ENGINE}:auto or {ENGINE}:10.0.0.1:6379"
        )
    return match[1]
