"""A hub on a disk: ``ROOT/organisation/repository/COMMIT/file``, and in ``main`` the newest commit."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from glcanet_jax.data import disk
from glcanet_jax.errors import UserError
from glcanet_jax.hub.place import Listing


class Folder:
    """What :class:`glcanet_jax.hub.place.Hub` asks for, below a folder."""

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def look(self, repository: str, revision: str | None) -> Listing:
        place = self.root / repository
        if not (place / "main").is_file():
            raise UserError(f"there is no repository {repository} in {self.root}; correct its name")
        commit = (place / "main").read_text().strip() if revision in (None, "main") else revision
        if not (place / commit).is_dir() or Path(commit).name != commit:
            raise UserError(f"{repository} has no revision {commit}; correct it, or leave it out")
        files = [p for p in (place / commit).rglob("*") if p.is_file()]
        return Listing(commit, tuple(sorted(p.relative_to(place / commit).as_posix() for p in files)))

    def get(self, repository: str, commit: str, name: str) -> Path:
        return self.root / repository / commit / name

    def put(self, repository: str, files: Mapping[str, Path], message: str, private: bool) -> Listing:
        digest = hashlib.sha256(message.encode())
        for name, path in sorted(files.items()):
            digest.update(name.encode() + path.read_bytes())
        place, commit = self.root / repository, digest.hexdigest()[:40]
        (place / commit).mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            with disk.whole(place / commit / name) as part:
                shutil.copyfile(path, part)
        with disk.whole(place / "main") as part:
            part.write_text(commit)
        return self.look(repository, commit)
