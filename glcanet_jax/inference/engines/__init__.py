"""What computes a network while a scene is walked. JAX is one engine; another one fits in here, and nothing else need know it."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Num

from glcanet_jax import geometry

Array = Any  # numpy's or JAX's


@runtime_checkable
class Engine(Protocol):
    """A network ready to predict. What it makes of a context, or keeps of patches, is its own affair: nobody else looks into it.

    Images are as they are stored, of any type; ``view`` is one of :data:`glcanet_jax.geometry.DIHEDRAL`, 0 without augmentation.
    A patch must be computed alike whatever is beside it in its batch: then maps are the same after a kill.

    Attributes:
        name: as ``--engine`` has it, and reports.
        dtype: what it computes in, ``float32``, ``bfloat16`` or ``int8``.
        at_once: patches that it computes at the same time on a CPU.
        on_device: whether contexts are shrunk, and patches cut, by JAX's programs on the device.
        second_pass: whether the answers for a context's patches wait until all of them were looked at.
        held: bytes of the weights as they lie.
        resident: bytes of the host that it holds already, of those that :meth:`sizes` tells.
    """

    name: str
    dtype: str
    at_once: int
    on_device: bool
    second_pass: bool
    held: int
    resident: int

    def with_views(self, views: geometry.Views) -> "Engine":
        """The same network for patches and contexts of other sizes."""

    def identity(self) -> dict[str, Any]:
        """What else a map's pixels depend on, for its fingerprint; of JAX nothing."""

    def encode(self, image: Num[Array, "1 g g c"], view: int) -> Any:
        """The context of a global view."""

    def ready(self, context: Any) -> Any:
        """What tells by ``block_until_ready()`` that a context is there."""

    def gather(self, contexts: Any | None, context: Any, taken: Bool[Array, " b"]) -> Any:
        """The contexts of a batch (None: of a new one), which are consumed, with ``context`` where ``taken``."""

    def look(self, contexts: Any, view: int, patches: Num[Array, "b p p c"], boxes: Float[Array, "b 4"]) -> Array:
        """Logits ``[b, h, w, k]`` of patches, an array of JAX's; of places where nothing was gathered, anything.

        ``boxes`` are those of the patches as they are turned for this view; ``patches`` are not turned yet.
        """

    def collect(
        self, gathered: Any | None, context: Any, view: int, patches: Array, boxes: Array, valid: Bool[Array, " b"]
    ) -> tuple[tuple[Any, Any], Array]:
        """Of networks that look twice: what is kept of a batch, and all that was gathered (None: nothing yet), which is consumed; and a token."""

    def encode_again(self, context: Any, gathered: Any, image: Num[Array, "1 g g c"], view: int) -> tuple[Any, Array]:
        """Of networks that look twice: the context now that its patches are known; and a token."""

    def look_again(self, context: Any, kept: Any, boxes: Float[Array, "b 4"]) -> Array:
        """Of networks that look twice: :meth:`look` from what was kept."""

    def sizes(self, dtype: Any, batch: int) -> dict[str, dict[str, int]]:
        """Bytes that each of its programs needs for batches of this size, once all are compiled: ``arguments``, ``outputs``, ``temporaries`` and ``total``."""
