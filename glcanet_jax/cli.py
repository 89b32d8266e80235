"""How a command ends: a result, one clear line, or a traceback that is our bug."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

from glcanet_jax.errors import UserError


def run(main: Callable[[], Any]) -> None:
    """Run a command; bad input ends in its message alone and exit code 2, Ctrl-C in 130."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def chosen_network(argv: list[str], flag: str) -> str | None:
    """The network that a command line names: its options are known only then."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.removeprefix(flag + "=")
    return None


def choose_preset(presets: dict[str, tuple[str, Any]], default: str, program: str, argv: list[str]) -> tuple[str, Any]:
    """A preset's name and its configuration with the command line's dotted overrides."""
    import tyro

    from glcanet_jax import config as configs

    if not argv or argv[0] not in (*presets, "-h", "--help"):
        argv = [default, *argv]
    network, named = chosen_network(argv, "--model.network"), {}
    for name, (description, config) in presets.items():
        if network is not None:
            config = dataclasses.replace(config, model=configs.with_network(config.model, network))
        named[name] = (description, config)
    config = tyro.extras.overridable_config_cli(
        named, prog=f"python -m {program}", args=argv, config=(tyro.conf.FlagConversionOff,)
    )
    return argv[0], config
