"""What is installed: the same requirements wherever they stand, everything that the code reads, and types for callers."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import glcanet_jax
from tests.conftest import CACHE

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ROOT / "glcanet_jax"


def requirements(name):
    """The requirements of a file, by the words in front of each part."""
    parts, part = {}, None
    for line in (ROOT / name).read_text().splitlines():
        if line.startswith("# "):
            part = parts.setdefault(line[2:].split(":")[0].split(",")[0], [])
        elif line.strip() and not line.startswith("-r"):
            part = parts.setdefault("", []) if part is None else part
            part.append(line.split("#")[0].strip())
    return parts


def test_requirements_agree():
    """Runtime and tests apart; pip's files and the package ask for the same."""
    extras = PROJECT["project"]["optional-dependencies"]
    parts = requirements("requirements.txt")
    assert parts["to run"] == PROJECT["project"]["dependencies"]
    assert {*parts["to test"], *parts["for experiments"]} <= set(extras["dev"])
    assert not {"pytest", "hypothesis", "beartype"} & {re.split(r"[>\[]", r)[0] for r in parts["to run"]}
    for extra in ("cuda", "aot", "onnx"):
        (named,) = requirements(f"requirements-{extra}.txt").values()
        assert named == extras[extra]
    of_openvino = (
        [*requirements("requirements-openvino.txt").values()],
        [*requirements("requirements-openvino-int8.txt").values()],
    )
    assert of_openvino[0] == [extras["openvino"]]
    assert [r for part in of_openvino for group in part for r in group] == extras["openvino-int8"]


def test_only_lower_bounds():
    project = PROJECT["project"]
    for requirement in [
        *project["dependencies"],
        *(r for group in project["optional-dependencies"].values() for r in group),
    ]:
        assert not re.search("<|==|~=|!=", requirement), requirement


def test_one_version():
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "glcanet_jax.__version__"}
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert cited == changed == glcanet_jax.__version__


def test_everything_that_is_read_is_installed():
    """Folders of modules are packages, and what is no module is among the package's data."""
    for path in PACKAGE.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package"
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = [f"{package.replace('.', '/')}/{pattern}" for package, named in data.items() for pattern in named]
    for path in PACKAGE.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(ROOT).as_posix()
            assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), f"{name} is not installed"


def test_experiments_are_not_installed():
    assert PROJECT["tool"]["setuptools"]["packages"] == {"find": {"include": ["glcanet_jax*"]}}


def mypy(path):
    command = [
        sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(CACHE / "mypy"), str(path),
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def test_a_callers_code_has_types(tmp_path):
    """A caller passes mypy, and mistakes do not."""
    pytest.importorskip("mypy")
    good = mypy(ROOT / "tests" / "typed_caller.py")
    assert good.returncode == 0, good.stdout
    mistakes = [
        "glcanet_jax.load('demo').predict('a.tif', confidense=True)",
        "glcanet_jax.load('demo').predict('a.tif', polygons='shp')",
        "count: int = glcanet_jax.load('demo').predict('a.tif').names",
        "glcanet_jax.train('runs/mine')",
        "glcanet_jax.lode('demo')",
    ]
    (tmp_path / "caller.py").write_text("\n".join(["import glcanet_jax", *mistakes]))
    bad = mypy(tmp_path / "caller.py")
    assert {int(n) for n in re.findall(r"caller.py:(\d+): error", bad.stdout)} == {2, 3, 4, 5, 6}, bad.stdout
