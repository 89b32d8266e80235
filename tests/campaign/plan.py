"""All cases, from a seed; or some of every kind."""

from itertools import chain, cycle
from pathlib import Path

from tests.campaign import jsons, networks, options, published, rasters, vectors
from tests.campaign.cases import Case, dice

SHORT_LEAVES_OUT = ("run",)  # kinds that take seconds a case


def cases(seed: int, site: Path) -> list[Case]:
    """Every case, those of a kind together."""
    found = chain(
        rasters.damaged(seed, 6),
        rasters.broken(seed),
        rasters.elsewhere(seed),
        rasters.names(seed),
        rasters.sizes(seed),
        rasters.crowds(seed),
        rasters.masks(seed),
        jsons.datasets(seed, 30),
        jsons.areas(seed, 30),
        networks.weights(seed, 6, site),
        networks.scratches(seed, 30, site),
        networks.reports(seed, 12, site),
        networks.trained(seed, 6, site),
        vectors.labels(seed, 30),
        vectors.gdals(seed, 12, site),
        published.published(seed, 24, site),
        options.options(seed),
        options.lines(seed),
    )
    return list(found)


def some(every: list[Case], count: int, seed: int) -> list[Case]:
    """As many of each kind as there is room for, drawn by chance."""
    rng, kinds = dice(seed, "some"), {}
    for case in every:
        if case.kind not in SHORT_LEAVES_OUT and case.command != "train":
            kinds.setdefault(case.kind, []).append(case)
    for members in kinds.values():
        rng.shuffle(members)
    found: list[Case] = []
    for kind in cycle(list(kinds)):
        if len(found) >= count or not any(kinds.values()):
            return found
        if kinds[kind]:
            found.append(kinds[kind].pop())
    return found
