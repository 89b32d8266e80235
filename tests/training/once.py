"""Runs of the same configuration share their compiled programs: what takes most of the time of runs of a few steps."""

import dataclasses

import jax

from glcanet_jax.geometry import Views
from glcanet_jax.training import loop

FEW = Views(context_size=512, global_size=64, patch_size=128, overlap=8)  # patches, of which validations have many
programs, predictors = {}, {}


class Step:
    """A jitted step that is compiled once for all whose programs are the same."""

    def __init__(self, jitted, key):
        self.jitted, self.key = jitted, key

    def __call__(self, *given):
        return self.jitted(*given)

    def lower(self, *given):
        shapes = [(x.shape, str(x.dtype), str(x.sharding)) for x in jax.tree.leaves(given)]
        return Lowered(self.jitted, given, f"{self.key} {shapes}")


class Lowered:
    def __init__(self, *given):
        self.given = given

    def compile(self, options):
        jitted, given, key = self.given
        key += repr(options)
        if key not in programs:
            programs[key] = jitted.lower(*given).compile(options)
        return programs[key]


def share(patch):
    """Of a patch's runs: steps by all that the configuration says but where and when it is written, and predictors."""
    make, predictor_of = loop.make_train_step, loop.predictor_of
    if predictor_of.__module__ == __name__:  # shared already
        return

    def make_train_step(model, tx, config, scale, phase):
        train = dataclasses.replace(config.train, checkpoint_every=1, checkpoint_minutes=1.0, eval_every=1)
        told = dataclasses.replace(config, out="", train=train)
        return Step(make(model, tx, config, scale, phase), repr((model, told, scale, phase)))

    def shared_predictor(work, state):
        key = repr((work.model, work.config.views, work.config.normalisation, work.bands, work.config.eval_batch))
        if key not in predictors:
            predictors[key] = predictor_of(work, state)
        predictors[key].variables = state.answering
        return predictors[key]

    patch.setattr(loop, "make_train_step", make_train_step)
    patch.setattr(loop, "predictor_of", shared_predictor)
