"""What came of a case, and whether that is right."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.campaign.cases import Case

# words that Python says and no message of ours
PYTHON = re.compile(
    r"Traceback|NoneType|<class |\[type=|\b(?:Key|Type|Attribute|Value|Index|OS|Unicode\w*|Runtime|Assertion)Error\b|errors\.pydantic"
)
LONGEST = 3000  # letters of a message
Snapshot = Mapping[str, tuple]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None  # None: it did not end in time, or its process died
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Verdict:
    case: Case
    word: str  # refused, accepted, FAULT
    told: str  # the message, or what is wrong

    def __str__(self) -> str:
        return f"{self.word:<8} {self.case.command:<9} {self.case.kind:<10} {self.case.name}: {self.told}"


def snapshot(folder: Path, leave_out: tuple[str, ...] = ()) -> Snapshot:
    """All that is in a folder: kind, size and date of files, where links lead."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if os.path.join(root, f) not in {str(folder / name) for name in leave_out}]
        for name in folders + files:
            path = os.path.join(root, name)
            stat = os.lstat(path)
            link = os.readlink(path) if os.path.islink(path) else ""
            # the date of a folder tells of files in it, which are listed themselves
            told = (stat.st_mode, link) if os.path.isdir(path) else (stat.st_mode, stat.st_size, stat.st_mtime_ns, link)
            found[os.path.relpath(path, folder)] = told
    return found


def digests(out: Path) -> dict[str, str]:
    """What stands under final names in ``--out``."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out)
        if path.is_file() and not path.is_symlink() and not any(part.startswith(".") for part in name.parts):
            found[str(name)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What was made, lost or changed."""
    told = [f"{name} was made" for name in after.keys() - before.keys()]
    told += [f"{name} is lost" for name in before.keys() - after.keys()]
    return sorted(
        told + [f"{name} was changed" for name in before.keys() & after.keys() if before[name] != after[name]]
    )


def judge(case: Case, folder: Path, outcome: Outcome, outside: list[str], inside: list[str]) -> Verdict:
    """The verdict on a case; ``outside`` and ``inside`` say what changed beside --out and under final names in it."""
    if outcome.code is None:
        return Verdict(case, "FAULT", outcome.err or f"no end within {outcome.seconds:.0f} s")
    fault = _words(case, outcome)
    if outside:
        fault = f"outside --out: {', '.join(outside[:4])}"
    if fault is None and outcome.code == 0:
        fault = "taken" if case.fine is None else case.fine(folder)
        if fault is None:
            return Verdict(case, "accepted", case.why)
        return _fault(case, fault, outcome)
    inside = [change for change in inside if not change.startswith(_may_be_there(case))]
    if fault is None and inside:
        fault = f"refused, but in --out {', '.join(inside[:4])}"
    if fault is None and case.must:
        fault = "refused, but this is right"
    return Verdict(case, "refused", _last(outcome)) if fault is None else _fault(case, fault, outcome)


def _may_be_there(case: Case) -> tuple[str, ...]:
    """How names begin of what is in --out although something was refused: other scenes' maps, and a run that has begun."""
    run = ("config.json", "data.json", "log.jsonl", "messages.log", "checkpoints/") if case.command == "train" else ()
    return (*run, case.beside, "report.json") if case.beside else run


def _fault(case: Case, what: str, outcome: Outcome) -> Verdict:
    return Verdict(case, "FAULT", f"{what} (exit code {outcome.code}; {_last(outcome)})")


def _words(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with an exit code and what was said."""
    both = f"{outcome.err}\n{outcome.out}"
    if match := PYTHON.search(both):
        return f"it says {match.group()!r}"
    if outcome.code == 0:
        return None
    if outcome.code == 1:
        listed = outcome.out.strip() and "error: " not in outcome.err
        return None if listed else "exit code 1 without problems listed"
    if outcome.code != 2:
        return f"exit code {outcome.code}"
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    if len(errors) != 1 + bool(case.beside):  # one a scene, and one of them all
        return f"{len(errors)} messages"
    if (
        not case.beside and errors[0] != len(lines) - 1 and "was not found" not in lines[errors[0]]
    ):  # a missing dataset's tree has lines
        return "a message of several lines"
    if len(lines[errors[0]]) > LONGEST:
        return f"a message of {len(lines[errors[0]])} letters"
    others = [line for line in lines[: errors[0]] if "Warning" in line or line.startswith(("ERROR", "TIFF", "libpng"))]
    return f"beside the message: {others[0]}" if others else None


def _last(outcome: Outcome) -> str:
    lines = [line for line in (outcome.err if outcome.code == 2 else outcome.out).splitlines() if line.strip()]
    if outcome.code == 2:
        lines = [line for line in lines if line.startswith("error: ")] or lines
        return lines[-1].removeprefix("error: ")[:400] if lines else ""
    traced = [line for line in outcome.err.splitlines() if line.strip()]
    return (traced or lines or [""])[-1][:300]
