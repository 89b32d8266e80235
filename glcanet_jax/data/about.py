"""What people want to know of a published data set before they get it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """In words."""

    title: str
    scenes: str  # how many, how large, which bands, metres a pixel
    licence: str  # of the data
    get: str  # how
    scores: tuple[str, ...] = ()  # published ones, each with its network, split, protocol and source
    unsure: tuple[str, ...] = ()  # what was not seen on a real file, and what to look at on the first one
    notes: tuple[str, ...] = ()  # what else matters
