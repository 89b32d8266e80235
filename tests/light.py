"""A network for tests of the walk, maps and files: it has all that they ask of one of two views, and compiles at once."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Light(nn.Module):
    """Logits of a patch's pixels, of where it lies in its context, and of what the context shows about there."""

    num_classes: int

    def setup(self):
        setattr(self, "global", nn.Conv(8, (4, 4), (4, 4)))
        self.local = nn.Conv(8, (4, 4), (4, 4))
        self.fusion = nn.Conv(self.num_classes, (3, 3))

    def encode_global(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        return {"x": nn.relu(getattr(self, "global")(image))}

    def encode_local(self, patches: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        return {"x": nn.relu(self.local(patches))}

    def fuse(
        self, context: dict[str, jax.Array], features: dict[str, jax.Array], boxes: jax.Array, *, train: bool = False
    ) -> Any:
        x, seen = features["x"], context["x"]
        near = []  # [b, n, cells] of each axis
        for axis, cells in enumerate(seen.shape[1:3]):
            first, last = (boxes[..., end, None] for end in (axis, axis + 2))
            away = ((jnp.arange(cells) + 0.5) / cells)[None, None] - (first + last) / 2
            near.append(jnp.exp(-((away / (last - first)) ** 2)))
        weight = near[0][..., :, None] * near[1][..., None, :]
        there = jnp.einsum("bnhw,bhwc->bnc", weight / weight.sum((-2, -1), keepdims=True), seen)
        told = jnp.concatenate([there, boxes], -1)[:, :, None, None]
        return self.fusion(jnp.concatenate([x, jnp.broadcast_to(told, (*x.shape[:-1], told.shape[-1]))], -1)), {}

    def __call__(self, image: jax.Array, patches: jax.Array, boxes: jax.Array, *, train: bool = False) -> Any:
        return self.fuse(self.encode_global(image, train=train), self.encode_local(patches, train=train), boxes)
