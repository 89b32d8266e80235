"""What a network in 8 bits is calibrated on: a few patches of a scene with their contexts, and others on which that is checked.

They are drawn from the scene's pixels and the views alone, so that a run that goes on draws the same ones.
"""

import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num

from glcanet_jax import geometry
from glcanet_jax.inference import reading
from glcanet_jax.inference.engines import Engine
from glcanet_jax.inference.request import Source

PATCHES, CHECKED = 16, 12  # that it is calibrated on, and that it is checked on
CONTEXTS = 4  # that they are of; more where there are fewer patches in each
TRIED = 64  # blocks that are looked into for pixels that hold data


class Sample(NamedTuple):
    """Patches of one context, as they are stored."""

    image: Num[np.ndarray, "1 g g c"]  # the global view
    patches: Num[np.ndarray, "n p p c"]
    boxes: Float[np.ndarray, "n 4"]
    view: int = 0  # of :data:`glcanet_jax.geometry.DIHEDRAL`, in which they are looked at


@dataclass(frozen=True)
class Calibration:
    """Patches to calibrate on, and others; where a scene has one alone, the same one turned."""

    on: list[Sample]
    others: list[Sample]

    @property
    def digest(self) -> str:
        """Of all that is in it."""
        own = hashlib.sha256()
        for sample in (*self.on, *self.others):
            own.update(f"{sample.view} {sample.patches.shape} {sample.patches.dtype}".encode())
            for array in sample[:3]:
                own.update(np.ascontiguousarray(array))
        return own.hexdigest()


def draw(source: Source, views: geometry.Views) -> Calibration | None:
    """Patches of a scene, of contexts spread over it; None where it holds no data.

    The area of interest does not count: a part of a scene is computed as it is in the whole.
    """
    walk = geometry.walk_scene(source.height, source.width, views)
    blocks = list(walk.blocks())
    each = -(-(PATCHES + CHECKED) // min(CONTEXTS, len(blocks)))
    on, others = [], []
    for block in _spread(blocks)[:TRIED]:
        left = PATCHES + CHECKED - sum(len(sample.patches) for sample in (*on, *others))
        drawn = _of_block(source, walk, blocks, block, views.global_size, min(each, left)) if left else None
        if drawn is None:
            continue
        most = -(-len(drawn.patches) * PATCHES // (PATCHES + CHECKED))
        for kept, part in ((on, slice(most)), (others, slice(most, None))):
            if len(drawn.patches[part]):
                kept.append(drawn._replace(patches=drawn.patches[part], boxes=drawn.boxes[part]))
    if on and not others:
        others = [sample._replace(view=geometry.DIHEDRAL[2]) for sample in on]
    return Calibration(on, others) if on else None


def _spread(blocks: list[geometry.Block]) -> list[geometry.Block]:
    """From the middle, each far from those before."""
    order = sorted(range(len(blocks)), key=lambda i: f"{i:032b}"[::-1])
    return [blocks[(i + len(blocks) // 2) % len(blocks)] for i in order]


def _of_block(
    source: Source, walk: geometry.Walk, blocks: list[geometry.Block], block: geometry.Block, size: int, count: int
) -> Sample | None:
    """So many patches of a block, in an order that has nothing to do with where they lie; fewer where it has no more."""
    done = {(other.row, other.column) for other in blocks} - {(block.row, block.column)}
    view: Any = None
    kept: list[tuple[int, reading.Patch]] = []
    for jobs in reading.read_blocks(source, walk, size, None, done):
        view = jobs[0].view if isinstance(jobs[0], reading.BlockStart) else view
        kept = _fewest(kept, (job for job in jobs if isinstance(job, reading.Patch)), count)
    if not kept:
        return None
    patches = np.stack([patch.image for _, patch in kept])
    return Sample(view[None], patches, np.array([patch.box for _, patch in kept], np.float32))


def _fewest(
    kept: list[tuple[int, reading.Patch]], patches: Iterable[reading.Patch], count: int
) -> list[tuple[int, reading.Patch]]:
    """Of what is kept and further patches those whose places have the least checksums; never many at once."""
    for patch in patches:
        mine = zlib.crc32(b"%d %d" % patch.corner), patch
        kept = sorted([*kept, mine], key=lambda entry: entry[0])[:count]
    return kept


def play(engine: Engine, sample: Sample) -> Float[np.ndarray, "n h w k"]:
    """The logits of a sample's patches, as a walk has them computed."""
    image, patches, boxes, view = sample
    boxes, every = geometry.turn_boxes(boxes, view), np.ones(len(patches), bool)
    context = engine.encode(image, view)
    if not engine.second_pass:
        contexts = engine.gather(None, context, every)
        return np.asarray(engine.look(contexts, view, patches, boxes))
    (kept, gathered), _ = engine.collect(None, context, view, patches, boxes, every)
    context, _ = engine.encode_again(context, gathered, image, view)
    return np.asarray(engine.look_again(context, kept, boxes))


def changed(wanted: list[np.ndarray], got: list[np.ndarray]) -> float:
    """The share of cells whose class is another one."""
    ids = [np.concatenate([logits.argmax(-1).ravel() for logits in many]) for many in (wanted, got)]
    return float((ids[0] != ids[1]).mean())
