"""Functions compiled once for every kind of arguments that they are given."""

import threading
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax


class Signature:
    """Structure, shapes and types of a tree of arrays (or of their shapes): what tells apart programs of a function."""

    __slots__ = ("_hash", "_told")

    def __init__(self, tree: Any):
        leaves, structure = jax.tree.flatten(tree)
        self._told = structure, tuple([(x.shape, x.dtype) for x in leaves])
        self._hash = hash(self._told)  # once: that of a network's variables takes longer than their program's call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self._told == other._told

    def __hash__(self) -> int:
        return self._hash


class Program(NamedTuple):
    """A function and what it is to be compiled for."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]  # arrays or their shapes
    donate: int | None = None  # the argument that it consumes
    static: tuple[Hashable, ...] = ()  # what else its answers depend on; given to it after the arguments


class Programs:
    """Compiles functions when they are first called with arguments of some kind. ``traces`` counts what was traced so far."""

    def __init__(self, device: Any = None):
        """``device``: that they run on; None: jax's default."""
        self.traces, self._device = 0, device
        self._compiled: dict[Hashable, Any] = {}
        self._held, self._held_signature = None, None
        self._count_lock = threading.Lock()  # several may be compiled at once

    def __len__(self) -> int:
        return len(self._compiled)

    def hold(self, tree: Any) -> None:
        """Know the signature of an argument that many calls are given, the very same object."""
        self._held, self._held_signature = tree, Signature(tree)

    def compiled(self, program: Program) -> Any:
        """A program, compiled for arguments like its own unless it is already."""
        fn, args, donate, static = program
        key = fn, static, *(self._held_signature if x is self._held else Signature(x) for x in args)
        if key not in self._compiled:

            def counted(*args: Any) -> Any:
                with self._count_lock:
                    self.traces += 1
                return fn(*args, *static)

            jitted = jax.jit(counted, donate_argnums=() if donate is None else donate)
            if self._device is not None:
                here = jax.sharding.SingleDeviceSharding(self._device)
                args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), args)
            self._compiled[key] = jitted.lower(*args).compile()
        return self._compiled[key]

    def __call__(
        self, fn: Callable[..., Any], *args: Any, donate: int | None = None, static: tuple[Hashable, ...] = ()
    ) -> Any:
        """``fn(*args, *static)`` by its program."""
        return self.compiled(Program(fn, args, donate, static))(*args)
