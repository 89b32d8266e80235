"""Notebooks without Jupyter: run them, and turn them into Markdown.

``python docs/tools/notebooks.py NOTEBOOK... [--write]`` runs the code cells of each from top to bottom, in a folder of its own
that is deleted afterwards; the first error ends it. ``--write`` stores what they print and draw in the file.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WIDTH = 900  # pixels of pictures, at most


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


# ---------------------------------------------------------------------------------------------------------------- run
def run(path: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells."""
    notebook, namespace = read(path), {"__name__": "__main__"}
    for number, cell in enumerate((c for c in notebook["cells"] if c["cell_type"] == "code"), 1):
        began, worked = time.perf_counter(), time.process_time()
        cell["outputs"], cell["execution_count"] = (
            run_cell(source(cell), namespace, f"{path.name}, cell {number}"),
            number,
        )
        print(
            f"{path.name}, cell {number}: {time.perf_counter() - began:.1f} s, {time.process_time() - worked:.1f} s of CPUs",
            flush=True,
        )
    return notebook


def run_cell(code: str, namespace: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What a cell prints, what it draws, and the value of its last line."""
    lines = [line for line in code.split("\n") if not line.startswith("%")]  # installs, in a browser
    *body, last = ast.parse("\n".join(lines)).body or [ast.Pass()]
    shown, value = io.StringIO(), None
    with contextlib.redirect_stdout(shown):
        exec(compile(ast.Module(body, []), name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        else:
            exec(compile(ast.Module([last], []), name, "exec"), namespace)
    outputs = []
    if shown.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": shown.getvalue().splitlines(keepends=True)})
    outputs += [{"output_type": "display_data", "metadata": {}, "data": {"image/jpeg": x}} for x in figures()]
    if value is not None and not outputs:
        told = {"text/plain": [repr(value)]}
        if (html := getattr(value, "_repr_html_", lambda: None)()) is not None:
            told["text/html"] = [html]
        outputs.append({"output_type": "execute_result", "metadata": {}, "data": told})
    return outputs


def figures() -> list[str]:
    """The open figures of matplotlib, closed, as JPEGs in base64."""
    from matplotlib import pyplot

    found = []
    for number in pyplot.get_fignums():
        figure, file = pyplot.figure(number), io.BytesIO()
        dpi = min(100, WIDTH / figure.get_figwidth())
        figure.savefig(file, format="jpeg", dpi=dpi, pil_kwargs={"quality": 65, "optimize": True})
        found.append(base64.b64encode(file.getvalue()).decode())
    pyplot.close("all")
    return found


# ----------------------------------------------------------------------------------------------------------- Markdown
def markdown(path: Path, pictures: Path) -> str:
    """A notebook as a page; its pictures are written into a folder beside it."""
    parts = []
    for cell in read(path)["cells"]:
        text = source(cell)
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif "image/jpeg" in output["data"]:
                file = pictures / f"{path.stem}-{len(parts)}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(output["data"]["image/jpeg"]))
                parts.append(f"![What the cell draws]({pictures.name}/{file.name})")
            elif "text/html" in output["data"]:
                parts.append("".join(output["data"]["text/html"]))
            else:
                parts.append(f"```text\n{''.join(output['data']['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"


def main(words: list[str]) -> None:
    os.environ["MPLBACKEND"] = "agg"
    sys.path.insert(0, str(ROOT))  # the clone, where the package is not installed
    for path in [Path(word).resolve() for word in words if word != "--write"]:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            notebook = run(path)
        if "--write" in words:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
