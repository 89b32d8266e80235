"""What mapping may take: the batch that suits a budget, threads for reading and finishing, and what they hold."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from glcanet_jax import geometry
from glcanet_jax.data.loader import cores
from glcanet_jax.durations import compiling, predicting
from glcanet_jax.errors import UserError
from glcanet_jax.inference import reading
from glcanet_jax.inference.engines.xla import JaxEngine
from glcanet_jax.inference.pipeline import reader_threads
from glcanet_jax.inference.predictor import Predictor, batch_for
from glcanet_jax.maps.model import Model
from glcanet_jax.maps.options import MapOptions
from glcanet_jax.profiling import free_device_memory, in_units, parse_bytes, require_memory, resident_memory

HELD_BYTES = 32 * 2**20  # of the maps of a small scene
HOST_RESERVE = 200 * 2**20  # bytes that reading, writing and GDAL's cache take beside the network


def pools(options: MapOptions) -> tuple[int, int]:
    """Scenes that are read, and that are finished, at the same time."""
    return options.readers or reader_threads(), options.writers or min(8, max(1, cores() // 4))


def pool_bytes(predictor: Predictor, options: MapOptions, dtype: Any, context: tuple[int, int]) -> int:
    """Bytes of the host that scenes take which are read ahead and finished behind, at most.

    Two contexts a reader; maps that are held in memory of those scenes, of the one that is computed, and of two a writer
    that wait or are finished, in which three times as much is made of them (a copy, overviews, the file).
    """
    readers, writers = pools(options)
    whole = math.prod(predictor.context_shape(context)) * predictor.bands * np.dtype(dtype).itemsize
    maps = (1 + options.confidence + options.probabilities * predictor.num_classes) * math.prod(context)
    held = maps if maps <= HELD_BYTES else 0  # else they lie on disk from the beginning
    return 2 * readers * min(whole, reading.CONTEXT_BYTES) + (readers + 1 + (2 + 3) * writers) * held


def choose_batch(predictor: Predictor, options: MapOptions, dtype: Any, context: tuple[int, int], patches: int) -> None:
    """Set the predictor's batch: the one given, or what suits so many patches altogether, or fewer where the memory has no more room.

    CPUs gain nothing from more than one patch at once, unless an engine has several streams on them: there it is one, or as many.
    """
    if options.batch is not None:
        return
    on_cpu = jax.default_backend() == "cpu" or predictor.engine.name != JaxEngine.name
    most = min(predictor.engine.at_once, patches) if on_cpu else batch_for(patches)
    if options.memory_budget is not None:
        budget = parse_bytes(options.memory_budget)
        if on_cpu:
            taken = resident_memory() - predictor.engine.resident
            taken += HOST_RESERVE + pool_bytes(predictor, options, dtype, context)
            if budget <= taken:
                raise UserError(
                    f"--memory-budget is {options.memory_budget}; the memory budget leaves nothing for the network, as the program "
                    f"itself needs {taken / 2**20:.0f} MB: give more, or --readers 1 --writers 1"
                )
            budget -= taken
        predictor.fit_batch(budget, dtype, context, most)
    elif not on_cpu and (free := free_device_memory()) is not None:
        held = predictor.engine.held  # counted in the programs' need as well
        predictor.fit_batch(int(0.85 * (free + held)), dtype, context, most)
    else:
        predictor.batch = most


def check_memory(predictor: Predictor, dtype: Any, context: tuple[int, int], *, tell: bool = True) -> None:
    """Compile what the walk will run, and say what it needs (if ``tell``).

    Raises:
        UserError: that is more than is free.
    """
    largest = max(predictor.memory(dtype, context).values(), key=lambda sizes: sizes["total"])
    held = predictor.engine.held
    what = "one patch at once" if predictor.batch == 1 else f"{predictor.batch} patches at once"
    require_memory(what, largest, held, "give a smaller --batch, --memory-budget, or --dtype bfloat16", tell=tell)


@contextlib.contextmanager
def memory_told(predictor: Predictor) -> Iterator[None]:
    """An exhausted device as a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory for {predictor.batch} patches at once; give a smaller --batch, "
            "--memory-budget, or --dtype bfloat16"
        ) from error


def prepare(model: Model, options: MapOptions, source: Any, *, scenes: int = 1, tell: bool = True) -> None:
    """Choose the patches at once for so many scenes of a kind, and compile for them what the walk will run.

    Raises:
        UserError: it needs more memory than is free.
    """
    views = model.predictor.views
    context = views.context_extent(source.height, source.width)
    patches = scenes * len(geometry.walk_scene(source.height, source.width, views))
    told = contextlib.nullcontext()
    if tell:
        kind = predicting(model.config, model.predictor, source.dtype, context)
        told = compiling(f"compiling the network, for contexts of {context[0]} x {context[1]} px", kind)
    with told:
        choose_batch(model.predictor, options, source.dtype, context, patches)
        check_memory(model.predictor, source.dtype, context, tell=tell)
    if tell and scenes > 1:
        readers, writers = pools(options)
        room = in_units(pool_bytes(model.predictor, options, source.dtype, context))
        print(
            f"{readers} scenes read at once and {writers} finished take up to {room} of the host's memory", flush=True
        )
