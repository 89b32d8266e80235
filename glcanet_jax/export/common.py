"""What every format of an export needs: the network of a weights file, and how far two answers are apart."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from glcanet_jax.errors import UserError


def rebuild(path: str | Path) -> tuple[Any, dict[str, Any], Any, Any]:
    """The network of a weights file or a run with plain convolutions, its variables, its configuration and the rest.

    Raises:
        UserError: there is none, or it looks twice at every patch, which no export can say.
    """
    from glcanet_jax import models, runs

    path = runs.find_weights(path)
    config, stored = runs.read_weights(path)
    if stored.network is not None:
        raise UserError(f"{path} is an exported network already; give the weights that it was made of")
    config = runs.computing_plainly(config)  # the convolution made for training on CPUs would be lowered for CUDA, too
    model = runs.rebuild(path, config, stored)
    if models.second_pass(model) is not None:
        raise UserError(
            f"{path} holds {config.model.network} with a second pass over all patches of a context, which an export cannot "
            "say; export a network without one, or predict with this package"
        )
    return model, stored.variables, config, stored


def relative_error(got: Any, wanted: Any) -> float:
    """Largest difference of any array from its like, relative to the largest value of that."""

    def error(got, wanted):
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        if not wanted.size:
            return 0.0
        return float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny))

    errors = jax.tree.leaves(jax.tree.map(error, got, wanted))
    return float(np.max(errors))  # NaN if any is
