"""What every hub offers: three calls."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


class Listing(NamedTuple):
    """What a repository holds at a revision."""

    commit: str  # that a branch or a tag stands for
    names: tuple[str, ...]  # of its files


@runtime_checkable
class Hub(Protocol):
    """A place where weights are published. Its calls raise UserError for what cannot be found, reached or written."""

    def look(self, repository: str, revision: str | None) -> Listing:
        """What is there; of a revision (a branch, a tag or a commit), or of the newest."""

    def get(self, repository: str, commit: str, name: str) -> Path:
        """One file, on this machine."""

    def put(self, repository: str, files: Mapping[str, Path], message: str, private: bool) -> Listing:
        """Publish files by the names that they get, as one commit; the repository is made where there is none."""
