"""Settings in JSON, YAML and TOML: the same whatever they are written in, and every trap of YAML told or closed."""

import json

import pytest

from glcanet_jax.dialects import read_settings
from glcanet_jax.errors import UserError

WANTED = {
    "data": {"cache": "off", "bands": "4,1,2"},
    "optimiser": {"global_rate": 1e-3, "clip": None},
    "train": {"steps": 1200, "tensorboard": False},
}
WRITTEN = {
    "json": json.dumps(WANTED),
    "yaml": """
        data: {cache: off, bands: "4,1,2"}  # a word, as in YAML 1.2
        optimiser:
          global_rate: 1e-3
          clip: null
        train: {steps: 1_200, tensorboard: false}
        """,
    "toml": """
        data = {cache = "off", bands = "4,1,2"}
        optimiser.global_rate = 1e-3
        train = {steps = 1_200, tensorboard = false}
        """,
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_they_hold_the_same(tmp_path, kind):
    path = tmp_path / f"own.{kind}"
    path.write_text("\n".join(line.removeprefix("        ") for line in WRITTEN[kind].splitlines()))
    wanted = {**WANTED, "optimiser": {"global_rate": 1e-3}} if kind == "toml" else WANTED  # which has no word for None
    found = read_settings(path)
    assert found == wanted and type(found["train"]["steps"]) is int and type(found["optimiser"]["global_rate"]) is float


def test_a_run_s_folder_is_its_configuration(tmp_path):
    (tmp_path / "config.json").write_text(WRITTEN["json"])
    assert read_settings(tmp_path) == WANTED


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: &x {b: 1}\nc: *x", r"line 2: an alias, \*x"),
        ("a.yaml", "a: 1\na: 2", "the key 'a' twice"),
        ("a.yaml", "a: [1", "no valid YAML"),
        ("a.yaml", "a: 1\n\tb: 2", "no valid YAML"),
        ("a.yaml", "[1, 2]", "holds list; it must hold settings by name"),
        ("a.yaml", "", "a.yaml is empty; write settings by name"),
        ("a.yaml", "train.steps: 4\ntrain: {steps: 5}", "has train twice; keep one"),
        ("a.yaml", "train: 5\ntrain.steps: 4", "has train.steps, and train as one value"),
        ("a.yaml", "? [1, 2]\n: 3", "no valid YAML|cannot"),
        ("a.yaml", "a: !!python/object:os.system x", "no valid YAML"),
        ("a.toml", "a = 1979-05-27", "holds what JSON cannot"),
        ("a.toml", "a = ", "no valid TOML"),
        ("a.json", '{"a": 1, "a": 2}', "twice in one object"),
        ("a.ini", "", "give a .json"),
        ("a.yml", "\u00e4".encode("latin-1").decode("latin-1"), "holds str"),
    ],
)
def test_bad_files_are_told(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as told:
        read_settings(tmp_path / name)
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml")
