"""The house: rooms on floors, no import that points upwards, none in a circle; and how large its functions and classes are."""

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# a room is a module or a package; it may import from rooms on lower floors and from itself. The lowest floor comes first
FLOORS = (
    ("errors", "progress"),
    ("limits",),
    ("backend", "geometry", "options", "profiling", "signals"),
    ("border",),
    ("data", "dialects", "models.layers"),
    ("models", "metrics", "page", "report", "hub"),
    ("config", "weights", "inference", "durations"),
    ("starting",),
    ("cli", "presets", "runs"),
    ("scoring",),
    ("sharing",),
    ("training", "maps", "export", "compare", "run_report", "settings"),
    ("prediction",),
    ("experiment", "measure", "scaling", "segmenter", "view"),
    ("__main__",),
)
FACADE = "glcanet_jax"  # the package's own names, each fetched when it is asked for: it may point anywhere
CORE = (
    "models",
    "geometry",
    "training.phases",
    "training.step",
    "training.losses",
    "training.optim",
    "training.freezing",
)
CORE_IMPORTS = {"jax", "flax", "optax", "numpy", "einops", "jaxtyping"}
HEAVY = (
    "rasterio shapely tyro matplotlib PIL grain tensorflow_datasets safetensors pyogrio tensorboardX pydantic".split()
)
LONGEST_FUNCTION, MEDIAN_CLASS = 60, 17  # lines


# ------------------------------------------------------------------------------------------------------ what imports what
def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*packages):
    return {name_of(path): path.read_text() for p in packages for path in sorted((ROOT / p).rglob("*.py"))}


def typing_only(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree, inside_functions):
    """All nodes, without what only type checkers run; what a function does when it is called only if asked."""
    for node in ast.iter_child_nodes(tree):
        if typing_only(node) or (not inside_functions and isinstance(node, ast.FunctionDef | ast.Lambda)):
            continue
        yield node
        yield from statements(node, inside_functions)


def imports(source, modules, inside_functions=True):
    """Names of the modules that a source imports."""
    found = set()
    for node in statements(ast.parse(source), inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say their whole name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in whole}
    return found


def graph(modules):
    return {name: imports(text, modules) & modules.keys() - {name} for name, text in modules.items()}


def floor_of(module):
    """Floor and room of a module of the package: the longest room's name that it begins with."""
    own = module.removeprefix("glcanet_jax.")
    rooms = [(i, room) for i, floor in enumerate(FLOORS) for room in floor if f"{own}.".startswith(f"{room}.")]
    return max(rooms, key=lambda found: len(found[1]), default=(None, None))


def upward(edges):
    """Imports that do not lead down, and modules without a floor."""
    wrong = []
    for module, targets in edges.items():
        here = floor_of(module)
        if module == FACADE:
            continue
        if here[0] is None:
            wrong.append(f"{module} has no floor")
        for target in targets - {FACADE}:
            there = floor_of(target)
            if there != here and not (there[0] is not None and here[0] is not None and there[0] < here[0]):
                wrong.append(f"{module} imports {target}")
    return sorted(wrong)


def circles(edges):
    """Modules that import themselves by way of others."""

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            new = edges[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    return sorted(module for module in edges if module in reached(module))


# -------------------------------------------------------------------------------------------------------------- the tests
def test_nothing_points_upwards():
    assert upward(graph(sources("glcanet_jax"))) == []


def test_the_package_does_not_know_the_experiments():
    modules = sources("glcanet_jax", "experiments")
    edges = graph(modules)
    assert [m for m in edges if m.startswith("glcanet_jax") for t in edges[m] if t.startswith("experiments")] == []


def test_nothing_imports_in_a_circle():
    assert circles(graph(sources("glcanet_jax", "experiments"))) == []


def test_every_room_is_there():
    modules = sources("glcanet_jax")
    rooms = {room for floor in FLOORS for room in floor} - {"segmenter"}
    assert [room for room in rooms if f"glcanet_jax.{room}" not in modules] == []


def test_what_the_checks_would_find():
    """An import upwards, sideways, of a room without a floor, and a circle; within functions, too."""
    lazy = "def f():\n    from glcanet_jax.maps import writer\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from glcanet_jax.maps import writer\n"
    modules = {"glcanet_jax.maps.writer": "", "glcanet_jax.data.tiles": lazy, "glcanet_jax.runs": typed}
    modules |= {"glcanet_jax.attic": "", "glcanet_jax.export": "import glcanet_jax.maps.writer"}
    assert upward(graph(modules)) == [
        "glcanet_jax.attic has no floor",
        "glcanet_jax.data.tiles imports glcanet_jax.maps.writer",
        "glcanet_jax.export imports glcanet_jax.maps.writer",
    ]
    round_trip = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert circles(round_trip) == ["b", "c"]
    assert imports(lazy, modules, inside_functions=False) == set()


def in_rooms(*rooms):
    modules = sources("glcanet_jax")
    return {m: text for m, text in modules.items() if any(f"{m}.".startswith(f"glcanet_jax.{r}.") for r in rooms)}


def packages(names):
    return {name.split(".")[0] for name in names}


def test_data_and_geometry_are_free_of_jax():
    modules = in_rooms("data", "geometry")
    assert len(modules) > 10
    found = {m: packages(imports(text, modules)) & {"jax", "jaxlib", "flax", "optax"} for m, text in modules.items()}
    assert {m for m, jaxs in found.items() if jaxs} == set()


def test_the_core_is_light():
    """Networks, geometry and the step of training import nothing else of others, at any place."""
    modules = in_rooms(*CORE)
    ours = sys.stdlib_module_names | {"glcanet_jax"}
    found = {m: packages(imports(text, modules)) - ours - CORE_IMPORTS for m, text in modules.items()}
    assert {m: names for m, names in found.items() if names} == {}


BLOCKED = """
import importlib, sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is out of reach")

sys.meta_path.insert(0, Wall())
for name in {modules!r}:
    importlib.import_module(name)
"""


@pytest.mark.parametrize(
    ("rooms", "blocked"),
    [(("data", "geometry"), ["jax", "jaxlib", "flax", "optax"]), ((*CORE, "config"), HEAVY)],
    ids=["data without jax", "core without the heavy"],
)
def test_rooms_load_without(rooms, blocked):
    modules = sorted(in_rooms(*rooms).keys() - {"glcanet_jax.data.builders"})  # tensorflow_datasets is all that it does
    done = run_blocked(modules, blocked)
    assert done.returncode == 0, done.stderr
    refused = run_blocked([blocked[0]], blocked)
    assert refused.returncode == 1 and f"{blocked[0]} is out of reach" in refused.stderr


def run_blocked(modules, blocked):
    code = BLOCKED.format(blocked=blocked, modules=modules)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


# -------------------------------------------------------------------------------------------------------------- the sizes
def lengths(modules, kind):
    """Lines by definition; of a class its body."""
    out = {}
    for module, text in modules.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, kind):
                first = node.body[0].lineno if kind is ast.ClassDef else node.lineno
                out[f"{module}.{node.name}:{node.lineno}"] = node.end_lineno - first + 1
    return out


def test_no_function_is_long():
    found = lengths(sources("glcanet_jax", "experiments"), ast.FunctionDef)
    assert len(found) > 500
    assert {name: n for name, n in found.items() if n > LONGEST_FUNCTION} == {}


def test_most_classes_are_short():
    found = lengths(sources("glcanet_jax"), ast.ClassDef)
    assert len(found) > 100
    assert statistics.median(found.values()) <= MEDIAN_CLASS


def test_lengths_are_counted():
    two = {"m": 'class A:\n    """One."""\n\n    def f(self):\n        pass\n'}
    assert lengths(two, ast.ClassDef) == {"m.A:1": 4} and lengths(two, ast.FunctionDef) == {"m.f:4": 2}
