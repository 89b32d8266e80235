"""What fills a device's memory while a program runs, from what XLA's compiler writes down when it is asked to.

With ``--xla_dump_to=FOLDER --xla_dump_hlo_as_text`` it leaves three texts of each program: the module, whose instructions say
what they are of the network and of the source; the allocations (arguments, outputs, constants, and one for all temporaries
with a place in it for each value); and from when to when each value lives.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PACKAGE = Path(__file__).parents[1]
PLUMBING = (
    "models/layers/convolution.py",
    "models/folding.py",
)  # lines that all modules go through tell nothing of one
ASSIGNMENT, LIVE_RANGE = "-buffer-assignment.txt", "-live-range.txt"
VALUE = r"^ value: <\d+ (\S+) @\d+> \(size=(\d+),offset=(\d+)\): ([^{\n]*)"
GAPS = "gaps"  # between the temporaries that live at the peak
WORKSPACE = r"[su]8\[\d+\]"  # the shape of what libraries (cuBLAS, cuDNN) compute in
ROOTS = ("global", "local", "fusion", "feedback")  # of a network's parameters, and the modules of its branches
LOOPS = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation")  # words of jax's own in an op
ARGUMENTS = {  # kinds of arguments, by a word in their names
    "opt_state": "optimiser", "params": "weights", "batch_stats": "weights", "variables": "weights", "strip": "strip",
    "context": "context", "gathered": "context", "kept": "context",
}  # fmt: skip


class Buffer(NamedTuple):
    """A piece of memory that is taken at the peak."""

    bytes: int
    part: str  # of what: weights, optimiser, inputs, outputs ..., or the part of the network that made it
    shape: str  # as f32[6,125,125,256]
    op: str  # of the network, with its modules' names: jvp(GLCANet)/GLCANet.fuse/aggregate/conv_general_dilated
    source: str  # glcanet_jax/models/glcanet.py:330: this package's line, or the nearest other one


class _Value(NamedTuple):
    """A temporary, somewhere in an allocation, for some time."""

    bytes: int
    place: tuple[int, int]  # allocation, offset
    shape: str
    name: str  # of its instruction, and in braces which of that one's outputs it is
    start: int
    stop: int


class _Allocation(NamedTuple):
    """A piece of memory that one or many values use in turn."""

    bytes: int
    kind: str  # preallocated-temp, thread-local (of the kernels' inner functions: no memory of the device's), constant or ""
    parameter: int | None  # of the program, whose argument it holds
    shape: str
    values: list[_Value]


def find_program(folder: Path) -> Path:
    """The module's text of the GPU program that was dumped last; its other texts lie beside it.

    Raises:
        FileNotFoundError: none was.
    """
    found = sorted(folder.glob(f"*gpu_after_optimizations{ASSIGNMENT}"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise FileNotFoundError(f"XLA left no program in {folder}: it was not told to, or had the program in a cache")
    return found[-1].with_name(found[-1].name.replace(ASSIGNMENT, ".txt"))


def at_peak(program: Path) -> list[Buffer]:
    """All that a program holds when it holds most, the largest first.

    Arguments and outputs are held throughout. The temporaries are those that live at the moment when they need most; what
    their allocation has beyond is the last buffer, :data:`GAPS`.

    Args:
        program: the module's text (see :func:`find_program`).
    """
    module, allocations = _Module(program.read_text()), list(_allocations(program))
    temporary = [a for a in allocations if a.kind == "preallocated-temp"]
    living = _fullest([value for allocation in temporary for value in allocation.values])
    out = [_held(a, module) for a in allocations if a.kind not in ("preallocated-temp", "thread-local")]
    for value in living:
        op, source = module.origin(value.name)
        part = "workspace" if re.fullmatch(WORKSPACE, value.shape) else part_of(op, source)
        out.append(Buffer(value.bytes, part, value.shape, op, source))
    out.append(Buffer(sum(a.bytes for a in temporary) - sum(v.bytes for v in living), GAPS, "", "", ""))
    return sorted((b for b in out if b.bytes), key=lambda b: -b.bytes)


def _held(allocation: "_Allocation", module: "_Module") -> Buffer:
    """The buffer of an allocation that is not for temporaries."""
    if allocation.parameter is None:
        part = "constants" if allocation.kind == "constant" else "outputs"
        last = max(allocation.values, key=lambda value: value.stop)  # before, others may have used its place
        return Buffer(allocation.bytes, part, last.shape, *module.origin(last.name))
    name = module.argument(allocation.parameter)
    part = next((ARGUMENTS[word] for word in re.findall(r"\w+", name) if word in ARGUMENTS), "inputs")
    return Buffer(allocation.bytes, part, allocation.shape, name, "")


def parts(buffers: Sequence[Buffer]) -> dict[str, int]:
    """Bytes by part, the largest first."""
    total = Counter()
    for buffer in buffers:
        total[buffer.part] += buffer.bytes
    return dict(total.most_common())


def part_of(op: str, source: str) -> str:
    """The part of a network, or of the program around it, that made a temporary: ``global/resnet``, ``fuse/smoothing``.

    All that the backward pass makes is ``gradients``, except what it computes again of the forward pass.
    """
    if "transpose(" in op and "rematted_computation" not in op:
        return "gradients"
    where = module = ""
    for word in op.split("/")[:-1]:  # the last one is the operation
        if entered := re.search(r"\(([A-Z]\w*\.\w+)\)", word):  # jvp(GLCANet.fuse)
            word = entered[1]
        if "(" in word or word in LOOPS or re.fullmatch(r"branch_\d+_fun", word):
            continue
        owner, _, method = word.partition(".")
        if owner in ROOTS:
            where = owner
        elif owner[:1].isupper():  # a method of the whole network
            root = next((root for root in ROOTS if root in method), None)
            where = root or where or method
        elif not module:
            module = re.sub(r"_?\d+$", "", owner)
    if not module:  # what functions outside of any module make
        file = Path(source.partition(":")[0])
        module = "training" if file.stem == "step" else file.stem
    return "/".join(filter(None, (where, module))) or "copies"


# ------------------------------------------------------------------------------------------------------- the three texts
def _beside(program: Path, ending: str) -> Path:
    return program.with_name(program.name.removesuffix(".txt") + ending)


def _lives(program: Path) -> dict[str, tuple[int, int]]:
    """When each value (an instruction, and in braces which of its outputs) begins and ends, in steps of the schedule."""
    text = _beside(program, LIVE_RANGE).read_text().partition("BufferLiveRange:")[2].partition("Live ranges at")[0]
    found = re.findall(r"^ +(\S+):(\d+)-(\d+)$", text, re.MULTILINE)
    return {_plain(name): (int(start), int(stop)) for name, start, stop in found}


def _plain(name: str) -> str:
    """A value that is all of its instruction's output is called as that is."""
    return name.removesuffix("{}")


def _allocations(program: Path) -> Iterator[_Allocation]:
    lives, always = _lives(program), (0, np.iinfo(np.int64).max)
    for block in re.split(r"^allocation ", _beside(program, ASSIGNMENT).read_text(), flags=re.MULTILINE)[1:]:
        head, _, body = block.partition("\n")
        number, size = re.match(r"(\d+): size (\d+)", head).groups()
        kind = next((kind for kind in ("preallocated-temp", "thread-local", "constant") if f", {kind}" in head), "")
        parameter = re.search(r", parameter (\d+), shape \|(.*?)\|", head)
        values = [
            _Value(int(taken), (int(number), int(offset)), shape, _plain(name), *lives.get(_plain(name), always))
            for name, taken, offset, shape in re.findall(VALUE, body, re.MULTILINE)
        ]
        of = (int(parameter[1]), parameter[2]) if parameter else (None, "")
        yield _Allocation(int(size), kind, *of, values)


def _fullest(values: Sequence[_Value]) -> list[_Value]:
    """Those that live when most is taken. Of some in one place (a value changed where it lies) the largest counts."""
    values = sorted(values, key=lambda v: (v.place, -v.bytes))
    size, start, stop = (np.array([getattr(v, name) for v in values], np.int64) for name in ("bytes", "start", "stop"))
    places = {place: i for i, place in enumerate(dict.fromkeys(v.place for v in values))}
    place = np.array([places[v.place] for v in values], np.int64)
    most, best = -1, np.zeros(0, np.int64)
    for moment in np.unique(start):
        living = np.flatnonzero((start <= moment) & (moment <= stop))
        living = living[np.diff(place[living], prepend=-1) != 0]
        taken = size[living].sum()
        if taken > most:
            most, best = taken, living
    return [values[i] for i in best]


class _Module:
    """What the module's text says of arguments and instructions."""

    def __init__(self, text: str):
        self._sources = _Sources(text)
        self._instructions: dict[str, str] = {}
        self._roots: dict[str, str] = {}  # instructions that are the results of functions, by the function
        self._arguments: dict[int, str] = {}
        function = ""
        for line in text.splitlines():
            if found := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
                entry, function = found.groups()
            elif found := re.match(r"  (ROOT )?%?(\S+) = (.*)", line):
                root, name, instruction = found.groups()
                self._instructions[name] = instruction
                if root:
                    self._roots[function] = instruction
                if entry and (number := re.search(r" parameter\((\d+)\)", instruction)):
                    self._arguments[int(number[1])] = _op_of(instruction)

    def argument(self, number: int) -> str:
        """A name with its path in the tree: ``state.params['local']['head']['kernel']``."""
        return self._arguments.get(number, "")

    def origin(self, value: str) -> tuple[str, str]:
        """Op and source of what an instruction gives, as ``fusion.3{1}``: of several things fused, each has its own."""
        name, _, output = value.rstrip("}").partition("{")
        instruction = self._instructions.get(name, "")
        told = self._fused(instruction, output) or instruction
        without = re.sub(r".*? (\w[\w-]*\(.*?\)).*", r"\1", told.replace("%", ""))  # copy(state_params...): no metadata
        return _op_of(told) or without, self._sources.find(told)

    def _fused(self, instruction: str, output: str) -> str | None:
        """The instruction inside a fusion that makes one of its outputs, where it says more than the fusion itself."""
        function = re.search(r" fusion\(.* calls=%?([^\s,]+)", instruction)
        root = self._roots.get(function[1], "") if function else ""
        outputs = re.search(r"\) tuple\((.*?)\)", root)
        if outputs and output.isdigit():
            root = self._instructions.get(re.findall(r"%([^\s,]+)", outputs[1])[int(output)], "")
        elif _op_of(instruction):
            return None
        return root if _op_of(root) else None


def _op_of(instruction: str) -> str:
    """The operation's name with its modules, without the jitted function that all of them are in."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', instruction)
    return re.sub(r"^jit\([^)]*\)/", "", re.sub(r"\\(.)", r"\1", found[1])) if found else ""


class _Sources:
    """Lines of the source that instructions come from: by stack frames, in tables before the module, or named beside it."""

    def __init__(self, text: str):
        tables = {
            name: {int(i): row for i, row in re.findall(r"^(\d+) (.*)$", rows, re.MULTILINE)}
            for name, rows in re.findall(r"^(\w+)\n((?:\d+ .*\n)+)", text.partition("\n%")[0], re.MULTILINE)
        }
        files = {i: row.strip('"') for i, row in tables.get("FileNames", {}).items()}
        self._lines, self._frames = {}, {}
        for i, row in tables.get("FileLocations", {}).items():
            self._lines[i] = files[_field("file_name_id", row)], _field("line", row)
        for i, row in tables.get("StackFrames", {}).items():
            self._frames[i] = _field("file_location_id", row), _field("parent_frame_id", row)
        # parents are printed one too high where the outermost frame, which has none, is its own
        self._shift = int(any(parent == i for i, (_, parent) in self._frames.items()))

    def find(self, instruction: str) -> str:
        """``glcanet_jax/models/layers/resnet.py:57``, the innermost line of this package, else of what is not installed, or ""."""
        stack, frame = [], _field("stack_frame_id", instruction)
        if found := re.search(r'source_file="(.*?)" source_line=(\d+)', instruction):
            stack.append((found[1], int(found[2])))
        while frame in self._frames:
            line, parent = self._frames[frame]
            stack.append(self._lines[line])
            frame = parent - self._shift
        stack.sort(key=lambda place: _distance(Path(place[0])))  # stable: the innermost stays first of its kind
        if not stack:
            return ""
        file, line = Path(stack[0][0]), stack[0][1]
        name = f"{PACKAGE.name}/{file.relative_to(PACKAGE)}" if file.is_relative_to(PACKAGE) else file.name
        return f"{name}:{line}"


def _distance(file: Path) -> int:
    """How little a file says of the network: 0 for this package's."""
    if file.is_relative_to(PACKAGE):
        return int(str(file.relative_to(PACKAGE)) in PLUMBING)
    return 3 if "site-packages" in file.parts else 2


def _field(key: str, row: str) -> int:
    """A number written as ``key=12``; 0, which no table counts from, where it is not."""
    found = re.search(rf"\b{key}=(\d+)", row)
    return int(found[1]) if found else 0
