"""How a command begins and ends: its page of help, its options; a result, one clear line, or a traceback that is our bug."""

import argparse
import contextlib
import dataclasses
import gc
import importlib.metadata
import inspect
import io
import os
import re
import select
import shutil
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from glcanet_jax import signals
from glcanet_jax.errors import Stopped, UserError
from glcanet_jax.options import MISSING, SHORT, Option, canonical, check, metavar, options_of, perhaps, sentence

COLUMN = 32  # where the words of an option begin
# objects from one look for unreachable ones to the next: what a command imports and traces stays, and looking through it at
# Python's own 700 takes a tenth of the start
ALLOCATED = 50_000


hanging = threading.Event()  # compiled code in a thread does not come back: the process ends beside it


def run(main: Callable[[], Any]) -> None:
    """Run a command; bad input ends in its message alone and exit code 2, Ctrl-C in 130, SIGTERM in 143 (:mod:`glcanet_jax.signals`)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a name that the terminal's encoding lacks ends no command; what is said is seen at once, in pipes and files, too
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    # of pictures that lie nowhere; hidden where they are opened, too, but filters are one for all threads
    warnings.filterwarnings("ignore", "Dataset has no geotransform")
    gc.set_threshold(ALLOCATED)
    with signals.heard():
        code = _code_of(main)
    _end(code)


def _code_of(main: Callable[[], Any]) -> int:
    """Run it, and tell what ended it; the exit code."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _unread():
            raise
        print("stopped: nobody reads what is printed", file=sys.stderr)
        return 141  # as shells count SIGPIPE
    return code if isinstance(code, int) else 0


def _unread() -> bool:
    """Whether whoever read what is printed, as `head`, has ended; what is still to be printed goes nowhere then."""
    if not hasattr(select, "poll"):  # Windows
        return False
    looked = select.poll()
    looked.register(sys.stdout, 0)  # errors are told anyway
    if not looked.poll(0):
        return False
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return True


def _end(code: int) -> NoReturn:
    if hanging.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def program() -> str:
    """What the user typed to start this package."""
    name = Path(sys.argv[0]).name
    return "python -m glcanet_jax" if name in ("__main__.py", "-c", "-m", "") else name.removesuffix(".exe")


def version() -> str:
    """Name and version."""
    import glcanet_jax

    number = getattr(glcanet_jax, "__version__", None)
    if number is None:
        try:
            number = importlib.metadata.version("glcanet-jax")
        except importlib.metadata.PackageNotFoundError:
            number = "(a clone, not installed)"
    return f"glcanet-jax {number}"


# ------------------------------------------------------------------------------------------------------------- options
def parse(kind: type, argv: Sequence[str], program: str, doc: str, default: Any = MISSING, presets: str = "") -> Any:
    """An instance of a dataclass from a command line; its own page and the end of the program where help is asked for.

    Args:
        doc: the command in words, its first example in double backticks.
        default: the instance whose values hold where nothing is given.

    Raises:
        UserError: the command line is wrong, and how.
    """
    import tyro

    options = list(options_of(kind, default))
    words = canonical(argv, options)
    if "-h" in words or "--help" in words:
        print(page(options, kind, default, program, doc, presets), end="")
        sys.exit(0)
    check(words, options, program)
    given = {} if default is MISSING else {"default": default}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, prog=program, args=words, **given)
    except SystemExit as stop:
        raise UserError(_plain(told.getvalue())) from stop


def _plain(text: str) -> str:
    """A message without its box, in one line."""
    lines = [line.strip("│╭╮╰╯─ ").strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(("For full helptext", "run "))]
    title = len(told) > 1 and bool(re.match(r"╭─", text.strip()))
    return " ".join(told[1:] if title else told)


def chosen(argv: Sequence[str], name: str = "model.network") -> str | None:
    """What a command line gives for an option, by its long or a short name: a network's options are known only then."""
    flags = [f"--{name}", *(f"--{short}" for short, long in SHORT.items() if long == name)]
    found = None
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") in flags and (equals or i + 1 < len(argv)):
            found = value if equals else argv[i + 1]
    return found


class Laid(NamedTuple):
    """Some settings, of a file, that are laid over what a run begins with."""

    own: Any  # the configuration with them
    over: Callable[[Any], Any]  # lays them over another one
    network: str | None = None  # that they name


def begun(config: Any, argv: Sequence[str], views: bool = True, laid: Laid | None = None) -> Any:
    """What a run begins with: weights, whose network it has, and their views, if those are wanted; or a run that it goes on from,
    whose configuration it has; or a configuration as it is.

    The command line says which, or settings that are ``laid`` over it; those of weights that the command line names lie over them.
    """
    from glcanet_jax import starting

    name, network = chosen(argv, "init.weights"), chosen(argv)
    own, over = (config, lambda begun: begun) if laid is None else (laid.own, laid.over)
    theirs = None if laid is None else own.init.weights
    if chosen(argv, "more-steps") is not None or own.more_steps is not None:
        return over(starting.of_run(name or theirs or chosen(argv, "out") or own.out))
    if name is not None:
        return starting.like(own, name, network, views and laid is None)
    return own if theirs is None else over(starting.like(config, theirs, laid.network or network, views))


def choose_preset(
    presets: Mapping[str, tuple[str, Any]], default: str, module: str, argv: list[str], doc: str = ""
) -> Any:
    """A preset's name and its configuration with the command line's dotted overrides."""
    from glcanet_jax import config as configs

    name = default
    if argv and not argv[0].startswith("-"):
        name, *argv = argv
    if name not in presets:
        raise UserError(f"no preset is called {name!r}{perhaps(name, list(presets))}; there are {', '.join(presets)}")
    config, network = presets[name][1], chosen(argv)
    if network is not None:
        config = dataclasses.replace(config, model=configs.with_network(config.model, network))
    config = begun(config, argv, views=False)  # a preset has its own
    listed = listing({key: words + " (default)" * (key == default) for key, (words, _) in presets.items()})
    program = f"python -m {module}"
    return name, parse(type(config), argv, program, doc, config, listed)


# ---------------------------------------------------------------------------------------------------------------- pages
def page(options: Sequence[Option], kind: type, default: Any, program: str, doc: str, presets: str = "") -> str:
    """The help of a command."""
    usage = f"{program} " + "PRESET " * bool(presets) + "".join(f"[{o.name} ...] " for o in options if o.positional)
    parser = argparse.ArgumentParser(usage=f"{usage}[OPTIONS]", add_help=False, formatter_class=_Formatter)
    parser.description = _description(doc)
    if presets:
        parser.description += f"\n\npresets:\n{presets}"
    groups = {"": parser.add_argument_group("options")}
    titles = dict(_groups(kind, default))
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(f"{option.group} options", titles.get(option.group))
        _add(groups[option.group], option)
    groups[""].add_argument("-h", "--help", action="store_true", help="show this page and exit")
    return parser.format_help()


def _add(group: Any, option: Option) -> None:
    words = sentence(option).replace("%", "%%")
    if option.positional:
        group.add_argument(option.name, nargs="*", metavar=option.name, help=words)
    elif option.flag:
        names = [option.name, option.off] if option.default else [option.name]
        group.add_argument(*(f"--{name}" for name in names), action="store_true", help=words)
    else:
        group.add_argument(f"--{option.name}", metavar=metavar(option), help=words)


def _groups(kind: type, default: Any, prefix: str = "") -> Any:
    """What groups of options are, from the docstrings of their dataclasses."""
    for f in dataclasses.fields(kind):
        value = f.default if default is MISSING else getattr(default, f.name)
        if value is MISSING and f.default_factory is not MISSING:
            value = f.default_factory()
        inner = f.type if value is MISSING else type(value)
        if dataclasses.is_dataclass(inner):
            doc = inspect.getdoc(inner) or ""
            yield f"{prefix}{f.name}", "" if doc.startswith(f"{inner.__name__}(") else _unmarked(doc.partition("\n")[0])
            yield from _groups(inner, value, f"{prefix}{f.name}.")


def _unmarked(text: str) -> str:
    """A docstring without its markup."""
    text = re.sub(r":\w+:`~?\.?([^`]*)`", r"\1", text).replace("`", "")
    return re.sub(r"\*{1,2}(\w+)\*{1,2}", r"\1", text)


def _description(doc: str) -> str:
    """A docstring as a page begins: its words, then its example on a line of its own."""
    first, _, rest = inspect.cleandoc(doc).partition("\n\n")
    example = re.search(r"``([^`]*)``", first)
    if example is None:
        return _unmarked(f"{first}\n\n{rest}".strip())
    words = first.replace(example[0], "").replace(": .", ".").strip().rstrip(":")
    words = words if words.endswith(".") else f"{words}."
    return "\n\n".join(filter(None, [_unmarked(words), _unmarked(rest), f"example: {example[1]}"]))


def listing(words: Mapping[str, str]) -> str:
    """Names with what they are, as pages list them."""
    return "\n".join(_entry(name, told) for name, told in words.items())


def _entry(name: str, words: str) -> str:
    """A line of a list, and those that it goes on with."""
    return _wrapped(words, _columns(), f"  {name:<10}", " " * 12)


def _columns() -> int:
    return min(shutil.get_terminal_size().columns, 120) - 1


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> str:
    """Lines that break between words alone: a hyphen is part of an option's name."""
    given = {"break_on_hyphens": False, "break_long_words": False}
    return textwrap.fill(" ".join(text.split()), width, initial_indent=first, subsequent_indent=later, **given)


class _Formatter(argparse.HelpFormatter):
    """Paragraphs of their own, examples and lists as they are, lines of the terminal's width."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=COLUMN, width=_columns())

    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrapped(text, width).splitlines()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        kept = ("example:", "presets:", "commands:")
        return "\n\n".join(b if b.startswith(kept) else _wrapped(b, width, indent, indent) for b in text.split("\n\n"))


def overview(program: str, words: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """The page of a program with commands: what each does, and an example."""
    lines = [f"usage: {program} COMMAND [OPTIONS]", "", words, "", "commands:"]
    for name, (does, example) in commands.items():
        lines += [_entry(name, does), f"  {'':<10}{program} {name} {example}"]
    lines += [
        "",
        _wrapped(
            f"`{program} COMMAND --help` tells a command's options, `{program} --version` the version.", _columns()
        ),
    ]
    return "\n".join(lines) + "\n"


def no_command(word: str, commands: Sequence[str], program: str) -> UserError:
    """What to tell of a command that there is not."""
    return UserError(f"no command is called {word!r}{perhaps(word, commands)}; there are {', '.join(commands)}")
