"""What there is of published data sets, in words: what ``glcanet datasets`` tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from glcanet_jax.data import DECLARED, choices, isprs, mbrsc
from glcanet_jax.data.about import About
from glcanet_jax.data.datasets import Protocol
from glcanet_jax.data.declared import Declared
from glcanet_jax.errors import UserError
from glcanet_jax.options import perhaps

Words = Iterator[tuple[str, str]]  # what is told, and of what; nothing where it goes on


def _each(label: str, words: Sequence[str]) -> Words:
    return ((label * (i == 0), one) for i, one in enumerate(words))


@dataclass(frozen=True)
class Entry:
    """A published data set, however it is read."""

    name: str
    about: About
    tree: str
    classes: tuple[str, ...]
    protocols: tuple[Protocol, ...]
    splits: Mapping[str, str] = field(default_factory=dict)  # lists of them in words, where there are several

    @property
    def short(self) -> Words:
        """What a list of all tells."""
        about = self.about
        yield "scenes", about.scenes
        yield "classes", f"{len(self.classes)}: {', '.join(self.classes)}"
        yield "licence", about.licence
        yield "get it", about.get
        yield from _each("scores", about.scores or ("none are told here",))

    @property
    def long(self) -> Words:
        """What is told of it alone, its layout aside."""
        yield from self.short
        if choices(self.name):
            yield "bands", f"{', '.join(choices(self.name))} (--data.bands; the first that is there)"
        if self.splits:
            yield "splits", "by --data.split-list, the first if none is given:"
            yield from (("", f"{name}: {words}") for name, words in self.splits.items())
        yield from _each("counted", [self._counted(protocol) for protocol in self.protocols])
        yield from _each("notes", self.about.notes)
        if self.about.unsure:
            yield "unsure", "not seen on real files yet; look at the first one:"
            yield from (("", words) for words in self.about.unsure)

    def _counted(self, protocol: Protocol) -> str:
        left = [name for i, name in enumerate(self.classes) if i not in protocol.classes]
        without = f" but {', '.join(left)}" * bool(left)
        dropped = "".join(f", pixels of {self.classes[i]} dropped" for i in protocol.ignore)
        against = "" if protocol.truth == "labels" else f", against {protocol.truth} labels"
        return f"{protocol.name} is the mean over all classes{without}{dropped}{against}"


def _declared(of: Declared) -> Entry:
    several = {name: splits.words for name, splits in of.splits.items()} if len(of.splits) > 1 else {}
    return Entry(of.name, of.about, of.tree, of.classes.names, of.protocols, several)


def entries() -> dict[str, Entry]:
    """All of them by name."""
    surveys = isprs.SURVEYS.values()
    found = [*map(_declared, DECLARED.values())]
    found += [Entry(s.name, s.about, s.tree, isprs.CLASSES.names, isprs.protocols(True)) for s in surveys]
    sample = mbrsc.open_sample()
    found.append(Entry("mbrsc", mbrsc.ABOUT, mbrsc.TREE, sample.classes.names, sample.protocols))
    return {entry.name: entry for entry in found}


def entry(name: str) -> Entry:
    """One of them.

    Raises:
        UserError: there is none of this name.
    """
    found = entries()
    if name not in found:
        own = "; folder, tiles and sample are not published ones" * (name in ("folder", "tiles", "sample"))
        raise UserError(
            f"no published data set is called {name!r}{perhaps(name, found)}; there are {', '.join(found)}{own}"
        )
    return found[name]
