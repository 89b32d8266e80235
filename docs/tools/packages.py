"""The picture of the packages, from their imports: ``python docs/tools/packages.py`` writes ``docs/pictures/packages.svg``.

A room is a package, or a module at the root of ``glcanet_jax``. It stands one floor above the highest room that it imports,
imports inside functions and for types included; an arrow that a longer way implies is not drawn.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = ROOT / "docs" / "pictures" / "packages.svg"
NESTED = ("models.layers",)  # packages inside packages that are rooms of their own
SKIPPED = ("__init__",)
WIDTH, FLOOR, HEIGHT = 760, 78, 34  # pixels

Graph = dict[str, set[str]]


def room_of(module: str) -> str | None:
    """The room of a dotted name, None of what is not ours."""
    first, *rest = module.split(".")
    if first == "experiments":
        return first
    if first != "glcanet_jax" or not rest:
        return None
    for nested in NESTED:
        if ".".join(rest[:2]) == nested:
            return nested
    return rest[0]


def modules() -> dict[str, Path]:
    """The files of the project by dotted name."""
    found = [p for top in ("glcanet_jax", "experiments") for p in (ROOT / top).rglob("*.py")]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(found)}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Dotted names of the modules that a file imports."""
    out = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            out |= {name if name in known else node.module for name in inside}
    return out


def graph() -> Graph:
    """The rooms that each room imports."""
    known, rooms = modules(), {}
    for module, path in known.items():
        room = room_of(module)
        if room is None or room in SKIPPED:
            continue
        own = {room_of(name) for name in imported(path, known)} - {room, None}
        rooms[room] = rooms.get(room, set()) | own
    return {room: {name for name in own if name in rooms} for room, own in rooms.items()}


def floors(rooms: Graph) -> dict[str, int]:
    """The floor of every room, from 0.

    Raises:
        ValueError: rooms import each other in a circle.
    """

    def climb(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"a circle: {' -> '.join((*above[above.index(room) :], room))}")
        return 1 + max((climb(name, (*above, room)) for name in rooms[room]), default=-1)

    return {room: climb(room) for room in rooms}


def direct(rooms: Graph) -> Graph:
    """Without the imports that others imply."""

    @cache
    def below(room: str) -> frozenset[str]:
        return frozenset(rooms[room]).union(*map(below, rooms[room]))

    return {room: {x for x in own if not any(x in below(other) for other in own)} for room, own in rooms.items()}


def places(rooms: Graph, floor: dict[str, int]) -> dict[str, tuple[float, float, float]]:
    """Middle, top and width of every room; on a floor, rooms stand near what they import."""
    out: dict[str, tuple[float, float, float]] = {}
    top = max(floor.values())
    for level in range(top + 1):
        row = [room for room in rooms if floor[room] == level]

        def wish(room: str) -> tuple[float, str]:
            below = [out[name][0] for name in rooms[room]]
            return (sum(below) / len(below) if below else WIDTH / 2), room

        row.sort(key=wish)
        widths = [24 + 8.2 * len(room) for room in row]
        gap = (WIDTH - sum(widths)) / (len(row) + 1)
        x = gap
        for room, width in zip(row, widths, strict=True):
            out[room] = x + width / 2, 16 + (top - level) * FLOOR, width
            x += width + gap
    return out


def draw(rooms: Graph) -> str:
    """The picture as SVG."""
    floor, arrows = floors(rooms), direct(rooms)
    at = places(arrows, floor)
    height = 32 + max(floor.values()) * FLOOR + HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="13.5">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#5a7d9a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for room in sorted(arrows):
        for other in sorted(arrows[room]):
            (x, y, _), (to_x, to_y, _) = at[room], at[other]
            start, bend = y + HEIGHT, FLOOR / 2
            lines.append(
                f'<path d="M{x:.0f} {start:.0f}C{x:.0f} {start + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y - 2:.0f}" '
                'fill="none" stroke="#5a7d9a" stroke-width="1.1" opacity=".75" marker-end="url(#a)"/>'
            )
    packages = {room for room in rooms if room in ("experiments", *NESTED) or (ROOT / "glcanet_jax" / room).is_dir()}
    for room, (x, y, width) in sorted(at.items()):
        fill = "#dbe9f4" if room in packages else "#f4f1e6"
        lines.append(
            f'<rect x="{x - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="5" fill="{fill}" stroke="#8a9aa8"/>'
            f'<text x="{x:.0f}" y="{y + 22:.0f}" text-anchor="middle" fill="#1c2833">{room}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    OUT.write_text(draw(graph()), encoding="utf-8")
    print(f"written: {OUT}")
