"""Weights by name: behind a folder, and the real library against a small server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glcanet_jax import hub, runs
from glcanet_jax.errors import UserError
from glcanet_jax.hub.folder import Folder
from tests.hub.server import serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made = Folder(tmp_path / "hub")
    monkeypatch.setitem(hub.HUBS, hub.PREFIX, lambda: made)
    return made


def put(tmp_path, **texts):
    files = {name.replace("__", "."): tmp_path / name for name in texts}
    for (_, path), text in zip(files.items(), texts.values(), strict=True):
        path.write_text(text)
    return files


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:org/repo", ("org/repo", None, None)),
        ("hf:timm/resnet50.tv_in1k", ("timm/resnet50.tv_in1k", None, None)),
        ("hf:org/repo@v1.0", ("org/repo", None, "v1.0")),
        ("hf:org/repo/sub/best.safetensors@refs/pr/2", ("org/repo", "sub/best.safetensors", "refs/pr/2")),
    ],
)
def test_names(text, parts):
    assert tuple(hub.parse(text)) == parts and str(hub.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:org",
        "hf:org/",
        "hf:/repo",
        "hf:org/repo@",
        "hf:../repo",
        "hf:org/repo/../../x",
        "hf:o r/g",
        "hf:org/..@x",
    ],
)
def test_what_is_no_name_is_told(text):
    with pytest.raises(UserError, match="no name on the hub; it must be hf:organisation/repository"):
        hub.parse(text)


def test_weights_come_by_name_with_the_commit_that_they_are_of(folder, tmp_path):
    first = hub.push("org/repo", put(tmp_path, model__safetensors="one", README__md="card"), "first")
    second = hub.push("hf:org/repo", put(tmp_path, model__safetensors="two"), "second")
    assert first != second and hub.parse(first).repository == "org/repo"
    newest = runs.find_weights("hf:org/repo")
    assert newest.read_text() == "two" and hub.origin(newest) == second
    assert runs.find_weights(Path(first)).read_text() == "one" and hub.origin(tmp_path) is None


def test_a_name_stands_for_one_commit_until_this_process_publishes(folder, tmp_path, monkeypatch):
    asked, look = [], Folder.look
    monkeypatch.setattr(Folder, "look", lambda *given: asked.append(given[1]) or look(*given))
    folder.put("org/repo", put(tmp_path, model__safetensors="one"), "first", False)
    asked.clear()
    first = hub.fetch("hf:org/repo")
    folder.put("org/repo", put(tmp_path, model__safetensors="two"), "somebody else's", False)
    asked.clear()
    assert hub.fetch("hf:org/repo") == first and first.read_text() == "one" and asked == []
    hub.push("org/repo", put(tmp_path, model__safetensors="three"), "ours")
    assert hub.fetch("hf:org/repo").read_text() == "three" and hub.fetch("hf:org/repo@main").read_text() == "three"


def test_the_file_is_chosen(folder, tmp_path):
    hub.push("org/one", put(tmp_path, other__safetensors="x", more__txt="y"), "m")
    assert hub.fetch("hf:org/one").name == "other.safetensors"
    hub.push("org/two", put(tmp_path, a__safetensors="x", b__safetensors="y", c__bin="z"), "m")
    with pytest.raises(UserError, match=r"several safetensors files: a.safetensors, b.safetensors; name one"):
        hub.fetch("hf:org/two")
    assert hub.fetch("hf:org/two/b.safetensors").read_text() == "y"
    with pytest.raises(UserError, match=r"no file d.safetensors .*; it has a.safetensors"):
        hub.fetch("hf:org/two/d.safetensors")
    with pytest.raises(UserError, match="is no file of weights; they are read from .safetensors"):
        hub.fetch("hf:org/two/c.bin")
    hub.push("org/three", put(tmp_path, c__bin="z"), "m")
    with pytest.raises(UserError, match="org/three has no safetensors file; it has c.bin"):
        hub.fetch("hf:org/three")


def test_what_is_not_there_is_told(folder, tmp_path):
    with pytest.raises(UserError, match="there is no repository org/none"):
        hub.fetch("hf:org/none")
    hub.push("org/repo", put(tmp_path, model__safetensors="one"), "first")
    with pytest.raises(UserError, match="org/repo has no revision v9"):
        hub.fetch("hf:org/repo@v9")
    with pytest.raises(UserError, match="names a file or a revision; give organisation/repository alone"):
        hub.push("org/repo@v1", {}, "m")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    calls = (lambda: hub.fetch("hf:org/repo")), (lambda: hub.push("org/repo", {}, "words"))
    for call in calls:
        with pytest.raises(UserError, match=r"needs huggingface_hub, .*; pip install huggingface_hub$"):
            call()


# ------------------------------------------------------------------------------------------------------- over the network
CALLS = """
import json, sys
from pathlib import Path
from glcanet_jax import hub
from glcanet_jax.errors import UserError

out = []
for call, *args in json.loads(sys.argv[1]):
    try:
        if call == "push":
            name, files, private = args
            out.append(hub.push(name, {k: Path(v) for k, v in files.items()}, "words", private))
        else:
            path = hub.fetch(*args)
            out.append([hub.origin(path), path.read_text()])
    except UserError as error:
        out.append(str(error))
print(json.dumps(out))
"""


def call(endpoint, home, *calls, **more):
    """Calls in a process of its own, for the library reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub")
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "mine", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "no_proxy": "*"} | more
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_real_library_against_a_server(tmp_path):
    """Publish, fetch by name and by commit, again without a network; faults are told in one line each."""
    files = {k: str(v) for k, v in put(tmp_path, model__safetensors="one", README__md="card").items()}
    with serving() as (address, holds):
        (made,) = call(address, tmp_path / "writer", ["push", "org/repo", files, True])
        commit = hub.parse(made).revision
        assert holds.commits["org/repo"][commit] == {"model.safetensors": b"one", "README.md": b"card"}
        assert holds.private == {"org/repo": True}
        again = holds.commit("org/repo", {"model.safetensors": b"two"})
        home = tmp_path / "reader"
        asked = ["fetch", "hf:org/repo"], ["fetch", f"hf:org/repo@{commit}"]
        wrong = ["fetch", "hf:org/none"], ["fetch", "hf:org/repo@v9"]
        newest, older, *told = call(address, home, *asked, *wrong)
        assert newest == [f"hf:org/repo@{again}", "two"] and older == [made, "one"]
        assert "org/none could not be fetched; there is no such repository" in told[0]
        assert "org/repo at v9 could not be fetched; it has no such revision" in told[1]
        assert not [path for _, path in holds.asked if path.endswith("README.md")]  # nobody asked for it
        (refused,) = call(address, home, ["push", "org/repo", files, False], HF_TOKEN="another")
        assert "org/repo could not be published to; log in with `hf auth login`" in refused
    offline = call(address, home, ["fetch", "hf:org/repo"], ["fetch", "hf:org/other"])
    assert offline[0] == newest
    assert (
        "org/other could not be fetched (" in offline[1]
        and "download the file elsewhere and give its path" in offline[1]
    )
