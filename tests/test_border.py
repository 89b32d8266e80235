"""What comes from outside: read whatever its encoding says, or refused in one line that names the file, the place and the cure."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from glcanet_jax import border, config
from glcanet_jax.config import Config
from glcanet_jax.errors import UserError
from glcanet_jax.limits import Length, Range, Text

# words of the program's own kind, which mean nothing to whoever wrote the file
OURS = re.compile(
    r"NoneType|KeyError|TypeError|ValueError|\w+_type\b|_error\b|<class|pydantic|Traceback|\bdict\b|\btuple\b|None"
)


def refused(call, *args, **kwargs):
    """The message of a refusal: one line, in the user's words."""
    with pytest.raises(UserError) as told:
        call(*args, **kwargs)
    message = str(told.value)
    own = message.replace("px, or None", "")  # what Python's fields say of themselves
    assert "\n" not in message and not OURS.search(own) and len(message) < 2000, message
    return message


@dataclass(frozen=True)
class Placed:
    here: Path
    there: Path | None = None
    several: tuple[Path, ...] = ()


def test_paths_come_back_as_paths():
    made = border.check({"here": "a/b", "several": ["c", "d"]}, Placed, "x.json", cure="-")
    assert made == Placed(Path("a/b"), None, (Path("c"), Path("d")))


# ------------------------------------------------------------------------------------------------------------ the bytes
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_with_and_without_its_mark(tmp_path, encoding):
    text = '{"Gebäude": "\\u00e4 \\ud83d\\ude00"}\r\n'
    (tmp_path / "x.json").write_bytes(text.encode(encoding))
    assert border.read_text(tmp_path / "x.json") == text
    assert border.read_json(tmp_path / "x.json") == {"Gebäude": "ä \U0001f600"}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"a": "ä"}'.encode("utf-16"), "is UTF-16; it must be a text in UTF-8: save it as UTF-8"),
        ('{"a": "ä"}'.encode("utf-16-le"), "is UTF-16"),
        ('{"a": "ä"}'.encode("utf-16-be"), "is UTF-16"),
        ('{"a": 1}'.encode("utf-32"), "is UTF-32"),
        (b"\n\n" + '{"a": "ä"}'.encode("latin-1"), "is not UTF-8 (line 3 has the byte 0xe4; Latin-1 or Windows-1252"),
        ('{"a": "€"}'.encode("cp1252"), "line 1 has the byte 0x80"),
        (b"II*\0\x08\0\0\0\x10\0\0\1\3\0\1\0", "is no text"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_other_encodings_are_named(tmp_path, data, told):
    (tmp_path / "x.json").write_bytes(data)
    message = refused(border.read_json, tmp_path / "x.json")
    assert message.startswith(f"{tmp_path / 'x.json'} is ") and told in message and "UTF-8" in message


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (Path.mkdir, "is a folder; it must be a file"),
        (os.mkfifo, "is a pipe; it must be a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device; it must be a file"),
        (lambda path: path.symlink_to(path), "cannot be read (Too many levels of symbolic links)"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "cannot be read (No such file or directory)"),
        (lambda path: None, "cannot be read (No such file or directory)"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**33), "bytes, over"),
    ],
    ids=["folder", "pipe", "device", "loop", "dangling", "absent", "huge"],
)
def test_what_is_no_file_is_told_at_once(tmp_path, make, told):
    make(tmp_path / "x.json")
    assert told in refused(border.read_json, tmp_path / "x.json")


def test_a_name_that_no_file_can_have_is_told():
    assert "cannot be read" in refused(border.read_json, "a\0b")


# ------------------------------------------------------------------------------------------------------------- the JSON
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("  \n", "it is empty"),
        ("{", "line 1"),
        ('{"a": 1,\n "b": }', "line 2"),
        ('{"a": 1} {"b": 2}', "Extra data"),
        ("{'a': 1}", "line 1"),
        ('{"a": 1,}', "line 1"),
        ('{"a": 1, "b": 2, "a": 3}', 'the key "a" twice in one object'),
        ('[{"x": {"b": 2, "b": 2}}]', 'the key "b" twice'),
        ('{"a": NaN}', "NaN, which is no number in JSON"),
        ('{"a": [-Infinity]}', "-Infinity, which is no number"),
        ('{"a": ' + "1" * 5000 + "}", "a number of thousands of digits"),
        ("[" * 100000, "nested too deeply"),
        ('{"a":' * 100000, "nested too deeply"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ('{"a": "\t"}', "line 1"),
    ],
)
def test_what_is_no_strict_json_is_told(text, told):
    message = refused(border.parse_json, text, "a/classes.json")
    assert message.startswith("a/classes.json ") and told in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "is a list of 0, it must be an object"),
        ({"rows": []}, "steps is missing, it must be a whole number"),
        ({"steps": 1}, "rows is missing, it must be a list"),
        ({"steps": True, "rows": []}, "steps is true, it must be a whole number"),
        ({"steps": 1.5, "rows": []}, "steps is 1.5"),
        ({"steps": 1, "rows": {}}, "rows is an empty object, it must be a list"),
    ],
)
def test_an_object_of_our_own_has_its_keys(tmp_path, content, told):
    (tmp_path / "r.json").write_text(json.dumps(content))
    message = refused(border.read_object, tmp_path / "r.json", steps=int, rows=list)
    assert str(tmp_path / "r.json") in message and told in message and "make it again" in message


# ----------------------------------------------------------------------------------------------------------- the schema
@dataclass(frozen=True)
class Inner:
    side: Annotated[int, Range(1, 100)]
    colour: Annotated[str, Text("#[0-9a-f]{6}", 'a colour as "#ff8800"')] = "#000000"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    many: Annotated[tuple[Inner, ...], Length(1, 3)] = (Inner(1),)
    pair: tuple[float, float] = (0.0, 1.0)
    kind: Literal["x", "y"] | None = None
    share: Annotated[float | None, Range(0, 1)] = None
    flag: bool = False
    named: dict[str, Inner] = field(default_factory=dict)
    rest: tuple[str, ...] = ()

    def __post_init__(self):
        if self.pair[0] > self.pair[1]:
            raise UserError("pair must rise")


GOOD = {"inner": {"side": 3}}


def test_values_become_dataclasses():
    given = GOOD | {"pair": [1, 2.5], "kind": "y", "share": 1, "named": {"a b": {"side": 2}}, "rest": ["u"]}
    made = border.check(given, Outer, "f.json")
    assert made == Outer(Inner(3), (Inner(1),), (1.0, 2.5), "y", 1.0, False, {"a b": Inner(2)}, ("u",))
    assert type(made.pair[0]) is float and type(made.share) is float


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"inner": {"side": "3"}}, 'inner.side is "3", it must be a whole number from 1 to 100'),
        ({"inner": {"side": True}}, "inner.side is true, it must be a whole number"),
        ({"inner": {"side": 3.0}}, "inner.side is 3.0, it must be a whole number"),
        ({"inner": {"side": None}}, "inner.side is null, it must be a whole number"),
        ({"inner": {"side": 0}}, "inner.side is 0, it must be a whole number from 1 to 100"),
        ({"inner": {"side": 101}}, "inner.side is 101"),
        ({"inner": {"side": 10**40}}, "inner.side is 1000"),
        ({"inner": {}}, "inner.side is missing, it must be a whole number"),
        ({"inner": {"side": 1, "sied": 2}}, "inner.sied is not known (perhaps you meant 'side')"),
        ({"inner": {"side": 1, "zzz": 2}}, "inner.zzz is not known, there are side, colour"),
        ({"inner": {"side": 1, "colour": "red"}}, 'inner.colour is "red", it must be a colour as "#ff8800"'),
        ({"inner": {"side": 1, "colour": "#ff8800\n"}}, "inner.colour is"),
        ({"inner": {"side": 1, "colour": 7}}, "inner.colour is 7, it must be a colour"),
        ({"inner": []}, "inner is a list of 0, it must be an object with side, colour"),
        ({"inner": None}, "inner is null, it must be an object"),
        ({"many": []}, "many is a list of 0, it must be a list of 1 to 3"),
        ({"many": [{"side": 1}] * 4}, "many is a list of 4, it must be a list of 1 to 3"),
        ({"many": [{"side": 1}, 5]}, "many[1] is 5, it must be an object"),
        ({"many": {"side": 1}}, "many is an object with side, it must be a list"),
        ({"pair": [1]}, "pair[1] is missing, it must be a number"),
        ({"pair": [1, 2, 3]}, "pair is a list of 3, it must be a list of 2"),
        ({"pair": [1, "2"]}, 'pair[1] is "2", it must be a number'),
        ({"pair": [2, 1]}, "pair must rise"),
        ({"kind": "z"}, 'kind is "z", it must be one of "x", "y" or null'),
        ({"share": 1.1}, "share is 1.1, it must be a number from 0 to 1 or null"),
        ({"share": False}, "share is false, it must be a number"),
        ({"share": float("inf")}, "share is Infinity, it must be a number"),
        ({"share": float("nan")}, "share is NaN, it must be a number"),
        ({"flag": 1}, "flag is 1, it must be true or false"),
        ({"flag": "true"}, 'flag is "true", it must be true or false'),
        ({"named": {"a b": {"side": -1}}}, 'named["a b"].side is -1'),
        ({"named": []}, "named is a list of 0, it must be an object of names"),
        ({"rest": "u"}, 'rest is "u", it must be a list'),
        ({"rest": [None]}, "rest[0] is null, it must be text"),
        ({"Inner": 1}, "Inner is not known (perhaps you meant 'inner')"),
        ({"pari": [1, 2]}, "pari is not known (perhaps you meant 'pair')"),
        ({"rest": ["x" * 500, 3]}, "rest[1] is 3"),
    ],
)
def test_a_fault_is_told_with_its_place(edit, told):
    message = refused(border.check, GOOD | edit, Outer, "d/f.json")
    assert message.startswith("d/f.json: ") and told in message


@pytest.mark.parametrize("value", [None, 3, "x", [], [GOOD], True])
def test_what_is_no_object_is_told(value):
    assert "the whole is" in refused(border.check, value, Outer, "f.json")


def test_all_faults_are_told_at_once_and_many_counted():
    message = refused(border.check, {"inner": {"side": 0, "b": 1}, "flag": 3}, Outer, "f.json")
    assert all(part in message for part in ("inner.side", "inner.b", "flag")) and message.count(";") == 3
    message = refused(border.check, {"inner": {"side": 1}} | {f"k{i}": 1 for i in range(20)}, Outer, "f.json")
    assert "; and 12 more; mend the file" in message


def test_what_is_nested_too_deeply_is_told():
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    assert "nested too deeply" in refused(border.check, GOOD | {"rest": deep}, Outer, "f.json")


# -------------------------------------------------------------------------------------------------------- configurations
def edited(path, value):
    """A configuration as JSON with one value changed."""
    *groups, name = path.split(".")
    out = config.to_dict(Config())
    inner = out
    for group in groups:
        inner = inner[group]
    inner[name] = value
    return out


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("train.steps", 0, "train.steps is 0, it must be a whole number from 1"),
        ("train.steps", "300", 'train.steps is "300"'),
        ("train.stepz", 3, "train.stepz is not known (perhaps you meant 'steps')"),
        ("train.seed", -1, "train.seed is -1"),
        ("train.ema", 1.0, "train.ema is 1.0, it must be a number of at least 0 and under 1"),
        ("train.schedule", "jont", 'train.schedule is "jont", it must be one of "joint", "staged"'),
        ("train.tensorboard", None, "train.tensorboard is null, it must be true or false"),
        ("train", [], "train is a list of 0"),
        ("loader.threads", 10**9, "loader.threads is 1000000000, it must be a whole number from 1 to 1024"),
        ("loader.batch_size", 10**20, "loader.batch_size is 1000"),
        ("loader.scale_jitter", [1.5, 1.0], "the low end comes first"),
        ("loader.scale_jitter", [1.0], "loader.scale_jitter[1] is missing"),
        ("loader.rare_class_fraction", float("nan"), "loader.rare_class_fraction is NaN"),
        ("views.overlap", 499, "overlap is 499 px; it must be at most 438 px"),
        ("views.overlap", -1, "views.overlap is -1"),
        ("views.context_size", 100, "context_size is 100 px; it must be at least the patch size"),
        ("views.context_size", 10**12, "views.context_size is 1000000000000"),
        ("views.patch_size", 0, "views.patch_size is 0, it must be a whole number from 32"),
        ("views.global_size", 16.5, "views.global_size is 16.5"),
        ("optimiser.local_rate", -1e-4, "optimiser.local_rate is -0.0001"),
        ("optimiser.clip", 0, "optimiser.clip is 0, it must be a number above 0 or null"),
        ("optimiser.clip", float("inf"), "optimiser.clip is Infinity"),
        ("loss.class_weights", [1, -1], "loss.class_weights[1] is -1"),
        ("loss.gamma", "6", 'loss.gamma is "6"'),
        ("normalisation.std", [0.2, 0.0, 0.2], "normalisation.std[1] is 0.0, it must be a number above 0"),
        ("normalisation.scale", 0, "normalisation.scale is 0"),
        ("model.width", 0, "model.width is 0"),
        ("model.width", 10**12, "model.width is 1000000000000, it must be a whole number from 1 to 4096"),
        ("model.depth", 51, "model.depth is 51, it must be one of 10, 18, 34, 50, 101"),
        ("model.mask", "footprnt", "model.mask is"),
        ("model.mask_margin", float("nan"), "model.mask_margin is NaN"),
        ("model.padding", "wide", "model.padding is not known"),
        ("model.network", "unett", "no network is called 'unett' (perhaps you meant 'unet')"),
        ("model.network", 3, "no network is called '3'"),
        ("model.attn_levels", [5, "4"], 'model.attn_levels[1] is "4"'),
        ("model", "glcanet", 'model is "glcanet", it must be an object'),
        ("data.dataset", None, "data.dataset is null, it must be text"),
        ("data.train_scenes", "tile4", 'data.train_scenes is "tile4", it must be a list'),
        ("freeze", {"backbone": True}, "freeze is an object with backbone, it must be a list"),
        ("eval_batch", 0, "eval_batch is 0"),
        ("out", 5, "out is 5, it must be text"),
        ("outt", "x", "outt is not known (perhaps you meant 'out')"),
    ],
)
def test_a_bad_configuration_is_refused_before_anything_is_built(path, value, told):
    message = refused(config.from_dict, edited(path, value), "runs/x/config.json")
    assert message.startswith("runs/x/config.json: ") and told in message


def test_a_configuration_of_an_older_version_takes_defaults():
    assert config.from_dict({}) == Config()
    assert config.from_dict({"model": {"network": "unet"}}).model == config.model_config("unet")
    assert config.from_dict({"model": {"depth": 18}}).model == config.model_config(depth=18)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"train": {"steps": 0}}', '{"out": "a", "out": "b"}'])
def test_the_configuration_of_a_run_is_looked_at(tmp_path, text):
    from glcanet_jax import runs

    (tmp_path / "config.json").write_text(text)
    assert refused(runs.open_run, Config(out=str(tmp_path))).startswith(str(tmp_path / "config.json"))
    assert (tmp_path / "config.json").read_text() == text and len(list(tmp_path.iterdir())) == 1
