"""What is done while the page is looked at already: overviews, windows, maps; one after the other, the latest wish first."""

import threading
from collections.abc import Callable
from typing import Any

from glcanet_jax.errors import UserError

PATIENCE = 5  # seconds that the end waits for what is under way
Tell = Callable[[float], None]  # takes the share that is done; raises Ended if nobody waits any more


class Ended(Exception):
    """The server closes: what is under way is given up."""


class Chore:
    """A piece of work.

    Attributes:
        state: waiting, working, done or failed.
        share: of it that is done, 0 to 1.
        problem: why it failed.
        result: what it made.
    """

    def __init__(self, key: Any, words: str, work: Callable[[Tell], Any]):
        self.key, self.words, self._work = key, words, work
        self.state, self.share, self.problem, self.result = "waiting", 0.0, "", None

    def do(self, tell: Tell) -> None:
        """Do it; what goes wrong is kept, for one broken file ends nothing else."""
        self.state = "working"
        try:
            self.result = self._work(tell)
            self.state, self.share = "done", 1.0
        except Ended:
            self.state = "waiting"
        except UserError as error:
            self.state, self.problem = "failed", str(error)
        except Exception as error:  # ours to mend, and still no reason that nothing else is done any more
            self.state, self.problem = "failed", f"{self.words} failed ({type(error).__name__}: {error})"


class Chores:
    """A thread that does them."""

    def __init__(self):
        self._all: dict[Any, Chore] = {}
        self._waiting: list[Chore] = []
        self._change, self._ends, self._thread = threading.Condition(), False, None

    def ask(self, key: Any, words: str, work: Callable[[Tell], Any]) -> Chore:
        """The chore of a key, which is begun unless it was asked for before; it comes before others that wait."""
        with self._change:
            if key not in self._all:
                self._all[key] = Chore(key, words, work)
                self._waiting.append(self._all[key])
            elif self._all[key] in self._waiting:
                self._waiting.remove(self._all[key])
                self._waiting.append(self._all[key])
            if self._thread is None and not self._ends:
                self._thread = threading.Thread(target=self._run, name="chores", daemon=True)
                self._thread.start()
            self._change.notify()
            return self._all[key]

    def forget(self, key: Any) -> None:
        """Let one that failed be asked for again."""
        with self._change:
            if key in self._all and self._all[key].state == "failed":
                del self._all[key]

    def known(self, key: Any) -> Chore | None:
        with self._change:
            return self._all.get(key)

    def told(self) -> list[dict[str, Any]]:
        """Those that are not done, for the page."""
        with self._change:
            return [
                {"words": c.words, "state": c.state, "share": round(c.share, 3), "problem": c.problem}
                for c in self._all.values()
                if c.state != "done"
            ]

    @property
    def done(self) -> int:
        """How many are done."""
        with self._change:
            return sum(c.state == "done" for c in self._all.values())

    @property
    def count(self) -> int:
        """How many there have been."""
        with self._change:
            return len(self._all)

    def wait(self, since: int = 0) -> list[str]:
        """Until none is left to do; returns what went wrong with those that failed, without the first ``since``."""
        with self._change:
            while any(c.state in ("waiting", "working") for c in self._all.values()) and not self._ends:
                self._change.wait(0.2)
            return [f"{c.words}: {c.problem}" for c in [*self._all.values()][since:] if c.state == "failed"]

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._ends:
                    self._change.wait()
                if self._ends:
                    return
                chore = self._waiting.pop()
            chore.do(lambda share, chore=chore: self._tell(chore, share))

    def _tell(self, chore: Chore, share: float) -> None:
        if self._ends:
            raise Ended
        chore.share = share

    def close(self) -> None:
        """Give up what is under way."""
        with self._change:
            self._ends = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join(timeout=PATIENCE)
