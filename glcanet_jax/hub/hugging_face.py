"""The Hugging Face hub, through ``huggingface_hub``: its cache, its tokens, and ``HF_ENDPOINT`` hold as everywhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glcanet_jax.errors import UserError
from glcanet_jax.hub.place import Listing

SECONDS = 20  # that the hub may take to answer what it has


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the hub (names that begin with hf:) needs huggingface_hub, which is not installed; pip install huggingface_hub"
        ) from error
    return huggingface_hub


class HuggingFace:
    """What :class:`glcanet_jax.hub.place.Hub` asks for, over the network."""

    def __init__(self):
        self._library = _library()
        self._api = self._library.HfApi()
        self._asked: dict[tuple[str, str], str] = {}  # revisions, by repository and the commit that they stood for

    def look(self, repository: str, revision: str | None) -> Listing:
        try:
            with _told(f"{repository}" + f" at {revision}" * bool(revision)):
                found = self._api.model_info(repository, revision=revision, timeout=SECONDS)
        except _Unreachable as error:
            kept = self._kept(repository, revision)
            if kept is None:
                raise UserError(f"{error}; connect, or download the file elsewhere and give its path") from error
            return kept
        self._asked[repository, found.sha] = revision or "main"
        return Listing(found.sha, tuple(file.rfilename for file in found.siblings or ()))

    def _kept(self, repository: str, revision: str | None) -> Listing | None:
        """What the cache has of a repository, for lack of a network."""
        try:
            known = self._library.scan_cache_dir().repos
        except self._library.CacheNotFound:
            return None
        for kept in (r for of in known if (of.repo_type, of.repo_id) == ("model", repository) for r in of.revisions):
            if kept.commit_hash == revision or (revision or "main") in kept.refs:
                names = (file.file_path.relative_to(kept.snapshot_path).as_posix() for file in kept.files)
                return Listing(kept.commit_hash, tuple(sorted(names)))
        return None

    def get(self, repository: str, commit: str, name: str) -> Path:
        try:
            with _told(f"{name} of {repository}"):
                # by the name of the revision, so that the cache knows what it stood for when there is no network
                asked = self._asked.get((repository, commit), commit)
                path = Path(self._library.hf_hub_download(repository, name, revision=asked))
                if commit not in path.parts:  # somebody has published meanwhile
                    path = Path(self._library.hf_hub_download(repository, name, revision=commit))
                return path
        except _Unreachable as error:
            raise UserError(f"{error}; try again, or download the file elsewhere and give its path") from error

    def put(self, repository: str, files: Mapping[str, Path], message: str, private: bool) -> Listing:
        additions = [self._library.CommitOperationAdd(name, str(path)) for name, path in files.items()]
        try:
            with _told(repository, "published to"):
                self._api.create_repo(repository, private=private, exist_ok=True)
                made = self._api.create_commit(repository, additions, commit_message=message)
        except _Unreachable as error:
            raise UserError(f"{error}; nothing was published: try again") from error
        return Listing(made.oid, tuple(files))


class _Unreachable(Exception):
    """The hub gave no answer. The message says to what."""


def _words(error: Exception) -> str:
    """What an error of the library says, in a line."""
    told, kind = str(error).strip().partition("\n")[0][:200], type(error).__name__
    if isinstance(error, TypeError | AttributeError | LookupError):  # of the library itself, over what it was answered
        return "it answered what huggingface_hub cannot read"
    return told if isinstance(error, ValueError) and told else f"{kind}{': ' * bool(told)}{told}"


@contextmanager
def _told(what: str, verb: str = "fetched") -> Iterator[None]:
    """The library's errors as UserError with what to do, or as :class:`_Unreachable`: it has no common base for them."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = type(error).__name__
        if kind == "GatedRepoError":
            cure = "its owner gives access to it: ask for it on its page, then log in with `hf auth login`"
        elif status in (401, 403) and verb != "fetched":
            cure = "log in with `hf auth login`, with a token that may write there"
        elif kind == "RevisionNotFoundError":
            cure = "it has no such revision: correct it, or leave it out"
        elif kind == "EntryNotFoundError" or kind == "RemoteEntryNotFoundError":
            cure = "it has no such file"
        elif status in (401, 403, 404):
            cure = "there is no such repository, or it is not public: correct its name, or log in with `hf auth login`"
        else:
            raise _Unreachable(f"{what} could not be {verb} ({_words(error)})") from error
        raise UserError(f"{what} could not be {verb}; {cure}") from error
