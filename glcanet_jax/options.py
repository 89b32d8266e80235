"""The options of a command, as its dataclass has them: names, types, defaults, and the words in the comments beside its fields.

A command line is brought into one form before it is read: short names become the configuration's (``--dataset`` is
``--data.dataset``), flags lose their ``True`` and ``False``, and what is no option, lacks or is no choice is told in one line.
"""

import ast
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.limits import FINITE, Nothing, Range, fields_of, mark_of, unmarked

MISSING = dataclasses.MISSING  # the default of what must be given
SHORT = {
    "dataset": "data.dataset",
    "data-dir": "data.dir",
    "bands": "data.bands",
    "split-list": "data.split-list",
    "network": "model.network",
    "init": "init.weights",
    # as they were once called
    "model": "model.network",
    "patch": "views.patch-size",
    "global-size": "views.global-size",
    "overlap": "views.overlap",
    "context": "views.context-size",
}
SHOWN = 6  # of them are told
SHORT_GROUPS = {"options": "model"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The scenes with their labels."""

    # deepglobe, inria, urur, fbp, gid15, flair, loveda, vaihingen, potsdam or mbrsc, published ones (`glcanet datasets`); folder or
    # tiles, of your own; or sample, which is bundled
    dataset: str
    dir: str | None = None  # where it lies; without: data/ and its name


@dataclass(frozen=True)
class Option:
    """What can be given to a command."""

    name: str  # data.dataset, train.log-every
    type: Any
    default: Any
    words: str
    choices: tuple[Any, ...] = ()
    positional: bool = False
    span: Range = FINITE
    nothing: str | None = None  # the word for None, of what may be None

    @property
    def group(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def off(self) -> str:
        """The name that switches a flag off."""
        group, dot, name = self.name.rpartition(".")
        return f"{group}{dot}no-{name}"

    @property
    def offers_nothing(self) -> bool:
        """Whether None may be given, and is not what holds without the option."""
        return self.nothing is not None and self.default is not None

    @property
    def offered(self) -> tuple[str, ...]:
        """The choices that are told."""
        own = tuple(str(c) for c in self.choices if c is not None)
        return (*own, self.nothing) if self.choices and self.offers_nothing else own

    @property
    def flag(self) -> bool:
        return self.type is bool


def perhaps(word: str, known: Iterable[str]) -> str:
    """The nearest of some words, to be put behind a wrong one; nothing if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (perhaps you meant {near[0]!r})" if near else ""


# ---------------------------------------------------------------------------------------------------- what a dataclass has
def options_of(kind: type, default: Any = MISSING, prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass, and of those in its fields by dotted names; with the values of an instance as defaults."""
    from tyro.conf import OmitArgPrefixes, Positional

    own, words = fields_of(kind), comments(kind)
    for f in dataclasses.fields(kind):
        value = getattr(default, f.name) if default is not MISSING else f.default
        if value is MISSING and f.default_factory is not MISSING:
            value = f.default_factory()
        hint, span, choices, marks = own[f.name]
        if dataclasses.is_dataclass(hint):
            inner = prefix if OmitArgPrefixes in marks else f"{prefix}{f.name}."
            yield from options_of(hint if value is MISSING else type(value), value, inner)
            continue
        name = f"{prefix}{f.name}".replace("_", "-")
        told = f.metadata.get("words", words.get(f.name, ""))
        nothing = _word_for_none(hint, choices, mark_of(Nothing, marks, Nothing()))
        yield Option(name, hint, value, told, choices, Positional in marks, span, nothing)


def _word_for_none(hint: Any, choices: tuple[Any, ...], mark: Nothing) -> str | None:
    """What stands for None; in the place of any text, which may be "none", that is "None"."""
    parts = typing.get_args(hint)
    if None in choices or (type(None) in parts and {int, float, bool} & set(parts)):
        return mark.word
    return "None" if type(None) in parts else None


def comments(kind: type) -> dict[str, str]:
    """The comments beside the fields of a dataclass and of its bases, or above them where the line was full, by name."""
    wanted, found = {f.name for f in dataclasses.fields(kind)}, {}
    for base in reversed(kind.__mro__):
        if wanted & set(base.__dict__.get("__annotations__", {})):
            try:
                found |= _beside(textwrap.dedent(inspect.getsource(base)))
            except (OSError, TypeError):  # made at run time, or without its source
                continue
    return {name: words for name, words in found.items() if name in wanted}


def _beside(source: str) -> dict[str, str]:
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    own = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    alone = {t.start[0] for t in tokens if t.type == tokenize.COMMENT and not t.line[: t.start[1]].strip()}
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            lines = [own[n] for n in range(node.lineno, node.end_lineno + 1) if n in own]
            above = node.lineno - 1
            while not lines and above in alone:
                above -= 1
            lines = lines or [own[n] for n in range(above + 1, node.lineno)]
            found[node.target.id] = " ".join(lines).replace("``", "")
    return found


# ------------------------------------------------------------------------------------------------------- a command line
def canonical(argv: Sequence[str], options: Sequence[Option]) -> list[str]:
    """A command line with the names of the configuration, and flags without values."""
    known, out, words = {o.name: o for o in options}, [], list(argv)
    flags = {name: (o, on) for o in options if o.flag for name, on in ((o.name, True), (o.off, False))}
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            out.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = _long(name.replace("_", "-"), known)
        if name not in flags:
            nothing = known[name].nothing if name in known else None
            if not equals and words[:1] == [nothing]:
                words[0] = "None"
            out.append(f"--{name}{equals}{'None' if equals and value == nothing else value}")
            continue
        if not equals and words and words[0].lower() in ("true", "false"):
            value = words.pop(0)
        option, on = flags[name]
        if value.lower() not in ("", "true", "false"):
            raise UserError(f"--{name} takes no value; got {value!r}")
        out.append(f"--{option.name if on == (value.lower() != 'false') else option.off}")
    return out


def given(argv: Sequence[str], kind: type, default: Any = MISSING) -> set[str]:
    """The names of the options on a command line of a dataclass, as its fields have them: ``views.patch_size``."""
    options = list(options_of(kind, default))
    known = {name: o.name.replace("-", "_") for o in options for name in (o.name, o.off)}
    words = (w[2:].partition("=")[0] for w in canonical(argv, options) if w.startswith("--"))
    return {known[word] for word in words if word in known}


def _long(name: str, known: dict[str, Option]) -> str:
    group, dot, rest = name.partition(".")
    renamed = SHORT_GROUPS.get(group, group) + dot + rest
    for other in (name, SHORT.get(name), renamed):
        if other in known:
            return other
    return name


def check(argv: Sequence[str], options: Sequence[Option], program: str) -> None:
    """Look over a canonical command line.

    Raises:
        UserError: an option does not exist, one that must be given lacks, or a value is none of its choices.
    """
    known = {name: o for o in options if not o.positional for name in ((o.name, o.off) if o.flag else (o.name,))}
    values: dict[str, list[str]] = {}
    name = None
    for word in argv:
        if word.startswith("-") and word[1:2] not in "0123456789.":
            name, equals, value = word.lstrip("-").partition("=")
            if name not in known or not word.startswith("--"):
                raise UserError(_unknown(word.partition("=")[0], name, known, program))
            values[name] = [value] if equals else []
        elif name is not None:
            values[name].append(word)
    lacking = [f"--{o.name}" for o in options if o.default is MISSING and not o.positional and o.name not in values]
    if lacking:
        raise UserError(f"{_listed(lacking)} must be given; `{program} --help` says what to give")
    for name, given in values.items():
        _check_values(name, given, known[name])


def _check_values(name: str, given: Sequence[str], option: Option) -> None:
    """Raises UserError if one of the words behind an option is no value of it."""
    several = typing.get_origin(option.type) is tuple
    choices = () if option.flag else tuple(map(str, option.choices))
    for word in given if several else given[:1]:
        if choices and word not in choices:
            near = perhaps(word, option.offered)
            raise UserError(f"--{name} is {word!r}{near}; it must be one of {', '.join(option.offered)}")
        wanted = {} if option.flag else dict(_wanted(option.type, option.span))
        if wanted and not any(fits(word) for fits in wanted.values()):
            told = [
                kind if kind != "None" else option.nothing for kind in wanted if kind != "None" or option.offers_nothing
            ]
            raise UserError(f"--{name} is {word!r}; it must be {' or '.join(told)}")


def _wanted(hint: Any, span: Range) -> Iterator[tuple[str, Callable[[str], bool]]]:
    """What a word must be, and whether it is, by the types that it may have."""
    told = {
        int: (f"a whole number {span}".rstrip(), _converts(int, span)),
        float: (f"a number {span}".rstrip(), _converts(float, span)),
        bool: ("True or False", ("True", "False").__contains__),
        type(None): ("None", "None".__eq__),
    }
    hint, _ = unmarked(hint)
    arguments = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if hint in told:
        yield told[hint]
    elif arguments:
        parts = [tuple(_wanted(part, span)) for part in arguments if not (part is int and float in arguments)]
        if all(parts):  # else one of them takes any word
            yield from itertools.chain(*parts)


def _converts(kind: type, span: Range) -> Callable[[str], bool]:
    def fits(word: str) -> bool:
        try:
            return kind(word) in span
        except ValueError:
            return False

    return fits


def _unknown(word: str, name: str, known: dict[str, Option], program: str) -> str:
    shorts = [short for short in list(SHORT)[:SHOWN] if SHORT[short] in known and short not in known]
    ends = [other for other in known if other.rpartition(".")[2] == name]
    near = ends or _nearest(name, [*known, *shorts])
    network = known.get("model.network")
    meant = f" (perhaps you meant --{near[0]})" if near else ""
    if not name.startswith("model.") or network is None:
        return f"there is no option {word}{meant}; `{program} --help` lists them"
    own = ", ".join(n.removeprefix("model.") for n in known if n.startswith("model.") and n != "model.network")
    meant = meant or f" (it has {own})"
    return f"{network.default} has no option {word}{meant}; `{program} --model.network {network.default} --help` lists them"


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The nearest name, of the same group if there is such a group: what groups share says nothing of nearness."""
    group, dot, last = name.rpartition(".")
    siblings = [other.removeprefix(group + dot) for other in known if dot and other.startswith(group + dot)]
    if siblings:
        return [f"{group}.{near}" for near in difflib.get_close_matches(last, siblings, n=1)]
    return difflib.get_close_matches(name, known, n=1)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# --------------------------------------------------------------------------------------------------------------- in words
def metavar(option: Option) -> str:
    """What stands for an option's value on a page."""
    if option.choices:
        told = "{" + ",".join(option.offered) + "}"
        return f"{told} ..." if typing.get_origin(option.type) is tuple else told
    told = _placeholder(option.type, option.name.rpartition(".")[2])
    return f"{told}|{option.nothing}" if option.offers_nothing else told


def _placeholder(hint: Any, name: str) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        parts = [_placeholder(part, name) for part in arguments if part is not Ellipsis]
        return " ".join(parts) + " ..." * (Ellipsis in arguments)
    if arguments:
        parts = dict.fromkeys(_placeholder(part, name) for part in arguments if part is not type(None))
        if "X" in parts:
            parts.pop("N", None)  # a number is a number
        return "|".join(parts)
    by_name = {"dir": "DIR", "out": "DIR", "tfds-dir": "DIR", "dataset": "NAME", "network": "NAME"}
    by_type = {int: "N", float: "X", str: "TEXT", bool: "True|False"}
    if hint is str and name in by_name:
        return by_name[name]
    return by_type.get(hint, "PATH")


def sentence(option: Option) -> str:
    """An option's words and its default."""
    default = option.default
    if option.flag:
        told = "on" if default else "off"
    elif isinstance(default, tuple):
        told = " ".join(map(str, default))
    else:
        told = "" if default is None else str(default)
    if default is MISSING:
        told = "must be given"
    elif told:
        told = f"default: {told}"
    short = [f"--{s}" for s in list(SHORT)[:SHOWN] if SHORT[s] == option.name]
    notes = "; ".join(filter(None, [told, *(f"short: {s}" for s in short)]))
    # fields are told of as Python has them
    words = re.sub(r"\bNone:", f"{option.nothing if option.offers_nothing else 'without'}:", option.words)
    return f"{words} ({notes})".strip() if notes else words
