"""What a command line may say: every option told, one dialect, and one clear line for what is wrong."""

import contextlib
import importlib
import io
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest
import tyro

from glcanet_jax import __main__ as main
from glcanet_jax import cli, data, models
from glcanet_jax.config import Config, OptimiserConfig, from_dict, model_config, to_dict
from glcanet_jax.errors import UserError
from glcanet_jax.geometry import Views
from glcanet_jax.measure.info import Info
from glcanet_jax.options import canonical, check, comments, options_of
from glcanet_jax.presets import PRESETS
from glcanet_jax.settings import Train

EXPERIMENTS = ("table1", "table2", "table3", "ablation", "recipe", "errors", "report", "extent", "memory", "speed", "scene_memory", "tile_memory")  # fmt: skip
COMMANDS = {
    "eval": main.Eval,
    "compare": main.Compare,
    "predict": main.Predict,
    "assemble": main.Assemble,
    "vectorise": main.Vectorise,
    "export": main.Export,
    "check": main.Check,
    "card": main.Card,
    "push": main.Push,
}


def asked(name):
    """The options of a command or an experiment."""
    if name in COMMANDS:
        return COMMANDS[name]
    return importlib.import_module(f"experiments.{name}").Options


def of_network(network):
    return list(options_of(Config, Config(model=model_config(network))))


def read(kind, *argv, default=None):
    return cli.parse(kind, argv, "glcanet it", "Does it.", *([] if default is None else [default]))


# ------------------------------------------------------------------------------------------------------------- the pages
@pytest.mark.parametrize("name", [*COMMANDS, *EXPERIMENTS])
def test_every_option_of_a_command_has_its_words(name):
    assert [o.name for o in options_of(asked(name)) if not o.words] == []


@pytest.mark.parametrize("network", models.NETWORKS)
def test_every_option_of_a_network_has_its_words_and_its_choices(network):
    own = of_network(network)
    assert [o.name for o in own if not o.words] == []
    found = {o.name.removeprefix("model."): o for o in own if o.group == "model"}
    assert found["dtype"].choices == ("float32", "bfloat16")
    if models.backbone(network) == "resnet":
        assert found["depth"].choices == (10, 18, 34, 50, 101) and found["depth"].words.startswith("of the ResNet")
    assert set(found) == {f.replace("_", "-") for f in models.options(network)} | {"network"}


def test_names_of_networks_and_datasets_are_all_told():
    words = {o.name: o.words for o in of_network("glcanet")}
    assert [n for n in models.names() if n not in words["model.network"]] == []
    for told in (words["data.dataset"], comments(main.Source)["dataset"]):
        assert [n for n in data.names() if n not in told] == []


@pytest.mark.parametrize("kind", [main.Eval, main.Compare, main.Predict, main.Check, Info, Train])
def test_the_page_tells_what_is_read(kind, monkeypatch):
    """The names of the page are those that tyro takes, no line is wider than the terminal but an example."""
    default = {} if kind in (main.Eval, main.Compare, main.Predict, main.Check) else {"default": kind()}
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], **default)
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        page = cli.page(list(options_of(kind, *default.values())), kind, *(default.values() or [cli.MISSING]), "glcanet it", "Does it: ``glcanet it``.")  # fmt: skip
        words = page.replace(",", " ").split()
        assert {w for w in words if w.startswith("--")} <= {w.strip("(),;:") for w in told.getvalue().split()} | set(
            shorts()
        )
        assert max(map(len, page.splitlines())) < columns and "example: glcanet it\n" in page


def shorts():
    from glcanet_jax.options import SHORT

    return [f"--{short}{end}" for short in SHORT for end in (")", "")]


@dataclass(frozen=True)
class Plain:
    """What it is."""

    side: int = 3  # pixels
    name: str = "a"  # of it
    # above it, for the
    # line is full
    kind: Literal["x", "y"] | None = None
    bare: bool = False


@dataclass(frozen=True)
class Derived(Plain):
    side: int = 4  # cells
    more: tuple[int, ...] = (1, 2)  # numbers


def test_comments_beside_and_above_fields_are_found():
    assert comments(Plain) == {"side": "pixels", "name": "of it", "kind": "above it, for the line is full", "bare": ""}
    assert comments(Derived) == comments(Plain) | {"side": "cells", "more": "numbers"}
    kinds = {o.name: o.choices for o in options_of(Derived)}
    assert kinds == {"side": (), "name": (), "kind": ("x", "y", None), "bare": (), "more": ()}


# ----------------------------------------------------------------------------------------------------------- one dialect
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--dataset", "sample", "--data-dir=d"], ["--data.dataset", "sample", "--data.dir=d"]),
        (["--network", "unet", "--bands", "irrg"], ["--model.network", "unet", "--data.bands", "irrg"]),
        (["--model.remat", "True", "--train.tensorboard", "False"], ["--model.remat", "--train.no-tensorboard"]),
        (["--model.no-lem", "--train.no-tensorboard=False"], ["--model.no-lem", "--train.tensorboard"]),
        (["--model.fast-conv", "False", "--train.log_every", "3"], ["--model.fast-conv", "False", "--train.log-every", "3"]),
        (["--eval-tta"], ["--eval-tta"]),
    ],
)  # fmt: skip
def test_a_command_line_is_brought_into_one_form(given, wanted):
    assert canonical(given, of_network("glcanet")) == wanted


def test_short_names_are_those_of_the_command_where_it_has_them():
    args = read(main.Predict, "a.tif", "b.tif", "--weights", "demo", "--out", "o", "--bands", "3,2,1", "--tta", "True")
    assert args.scenes == ("a.tif", "b.tif") and args.options.bands == "3,2,1" and args.options.tta
    args = read(main.Eval, "--dataset", "potsdam", "--bands", "rgb", "--weights", "w", "--out", "o")
    assert (args.data.dataset, args.data.bands, args.data.dir, args.tta) == ("potsdam", "rgb", None, False)


def test_a_network_is_named_as_in_a_configuration_or_as_it_once_was():
    lines = ("--model.network unet --model.width 8", "--network=unet --model.width 8", "--model unet --options.width 8")
    for line in lines:
        argv = line.split()
        default = Info(model=model_config(cli.chosen(argv)))
        args = read(Info, *argv, "--patch", "128", default=default)
        assert args.model == model_config("unet", width=8) and args.views.patch_size == 128


def test_a_list_of_truths_stays_one():
    from experiments import memory

    assert read(memory.Options, "--remat", "False", "True", default=memory.Options()).remat == (False, True)


def test_a_configuration_survives_its_words():
    config = Config(model=model_config("glnet", depth=18, mutual=True))
    assert from_dict(to_dict(config)) == config


# ------------------------------------------------------------------------------------------------------------ what is wrong
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--train.stepz 3", "there is no option --train.stepz (perhaps you meant --train.steps); `glcanet it --help` lists them"),
        ("--steps 3", "there is no option --steps (perhaps you meant --train.steps)"),
        ("--model.dpth 18", "glcanet has no option --model.dpth (perhaps you meant --model.depth)"),
        ("--datset sample", "there is no option --datset (perhaps you meant --dataset)"),
        ("-x", "there is no option -x;"),
        ("--train.schedule jont", "--train.schedule is 'jont' (perhaps you meant 'joint'); it must be one of joint, staged"),
        ("--model.depth 51", "--model.depth is '51'; it must be one of 10, 18, 34, 50, 101"),
        ("--train.steps many", "--train.steps is 'many'; it must be a whole number from 1 to 1000000000"),
        ("--loader.scale-jitter 1 b", "--loader.scale-jitter is 'b'; it must be a number"),
        ("--eval-tta=perhaps", "--eval-tta takes no value; got 'perhaps'"),
        ("--out", "Missing value for argument '--out'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(line, message):
    with pytest.raises(UserError) as told:
        read(Config, *line.split(), default=Config())
    assert message in str(told.value) and "\n" not in str(told.value) and "│" not in str(told.value)


def test_none_is_offered_where_it_is_another_choice_alone():
    preset, position = (next(o for o in options_of(Train) if o.name == name) for name in ("preset", "model.position"))
    assert preset.offered == ("recipe", "fast", "paper", "tiny") and position.offered == ("sine", "none")
    with pytest.raises(UserError, match="one of recipe, fast, paper, tiny$"):
        check(["--preset", "x"], [preset], "glcanet train")


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_pages_say_what_nothing_means(preset):
    """None is Python's word: pages say what holds without an option, and have a word for it where that is not the default."""
    default = Train(**{f.name: getattr(PRESETS[preset][1], f.name) for f in fields(Config)}) if preset else Train()
    for kind, given in [(Train, [default]), *((kind, []) for kind in COMMANDS.values())]:
        told = cli.page(list(options_of(kind, *given)), kind, *(given or [cli.MISSING]), "glcanet it", "Does it.")
        assert "None" not in told
    told = cli.page(list(options_of(Train, default)), Train, default, "glcanet it", "Does it.")
    assert ("--views.context-size N|whole " in told) == (preset != "paper")
    assert ("--train.steps N|none " in told) == (default.train.steps is not None)


@pytest.mark.parametrize("before", [2448, None])
def test_a_word_stands_for_nothing(before):
    default = Config(views=Views(context_size=before), optimiser=OptimiserConfig(clip=1.0))
    for words in ("--views.context-size whole --optimiser.clip=none", "--context=whole --optimiser.clip None"):
        config = read(Config, *words.split(), "--train.steps", "3", default=default)
        assert (config.views.context_size, config.optimiser.clip, config.train.steps) == (None, None, 3)
    for words, told in (
        ("--views.context-size none", "must be a whole number from 1 to 1048576" + " or whole" * (before is not None)),
        ("--optimiser.clip 0", "must be a number above 0 or none"),
        ("--model.position whole", "must be one of sine, none"),
    ):
        with pytest.raises(UserError, match=f"{told}$"):
            read(Config, *words.split(), default=default)
    assert read(Config, "--data.licence", "none", default=default).data.licence == "none"  # any text


def test_options_beside_weights_that_are_described_are_refused():
    with pytest.raises(UserError, match="^--model.depth, --scene and the weights demo were given; .* leave them out"):
        main.info(["demo", "--scene", "100x100", "--model.depth", "18"], ("glcanet info", "Info. ``x``"))


def test_what_must_be_given_is_told():
    options = list(options_of(main.Eval))
    with pytest.raises(UserError, match="--data.dataset, --weights and --out must be given; `glcanet eval --help`"):
        check([], options, "glcanet eval")
    check(["--data.dataset", "sample", "--weights=w", "--out", "-1"], options, "glcanet eval")


# ------------------------------------------------------------------------------------------------------------ the program
def start(monkeypatch, *argv, program="/usr/bin/glcanet"):
    monkeypatch.setattr(sys, "argv", [program, *argv])
    return main.main()


def test_the_program_tells_its_commands_and_its_version(monkeypatch, capsys):
    assert start(monkeypatch, "--help") == 0 and start(monkeypatch) == 2
    told = capsys.readouterr().out
    assert told.startswith("usage: glcanet COMMAND") and all(f"glcanet {name} " in told for name in main.COMMANDS)
    assert start(monkeypatch, "--version") == 0 and capsys.readouterr().out.startswith("glcanet-jax ")
    with pytest.raises(UserError, match="no command is called 'predct' .perhaps you meant 'predict'."):
        start(monkeypatch, "predct")


def test_a_page_names_the_program_as_it_was_started(monkeypatch, capsys):
    for program, name in (("/usr/bin/glcanet", "glcanet"), ("/x/glcanet_jax/__main__.py", "python -m glcanet_jax")):
        with pytest.raises(SystemExit) as stopped:
            start(monkeypatch, "check", "--help", program=program)
        told = capsys.readouterr().out
        assert (
            stopped.value.code == 0
            and told.startswith(f"usage: {name} check ")
            and f"example: {name} check --data" in told
        )


def test_weights_that_are_not_there_have_near_names(tmp_path, monkeypatch):
    from glcanet_jax import runs

    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    (tmp_path / "mine" / "last.safetensors").touch()
    for wrong, near in (("dmo", "demo"), ("mnie", "mine"), ("mine/lst.safetensors", "last.safetensors")):
        with pytest.raises(UserError, match=f"there is no weights file or run at {wrong} .perhaps you meant '{near}'."):
            runs.find_weights(wrong)
    with pytest.raises(UserError, match=r"at elsewhere/dmo; train one"):
        runs.find_weights("elsewhere/dmo")
