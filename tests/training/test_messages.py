"""What libraries say of a run, and where it is seen: in a file, beside the bar, or on the terminal."""

import logging
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.progress import Progress
from glcanet_jax.training.messages import errors_kept, native_kept, warnings_kept


def test_warnings_go_to_the_file_and_errors_are_seen(tmp_path, capsys):
    path, root = tmp_path / "messages.log", logging.getLogger()
    before = root.handlers[:], warnings.showwarning
    with warnings_kept(path), warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.getLogger("absl").warning("very slow")
        logging.getLogger("other").error("very wrong")
        warnings.warn("very old", stacklevel=1)
    told = path.read_text()
    assert all(words in told for words in ("WARNING absl: very slow", "ERROR other: very wrong", "very old"))
    seen = capsys.readouterr().err
    assert "very wrong" in seen and "very slow" not in seen and "very old" not in seen
    assert (root.handlers, warnings.showwarning) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_on_a_full_disk_messages_are_lost_and_nothing_else_happens(capsys):
    with pytest.raises(UserError, match="no room"), warnings_kept(Path("/dev/full")):
        logging.getLogger("absl").warning("very slow")
        raise UserError("no room")
    assert capsys.readouterr().err == ""


def test_what_is_told_in_other_words_goes_to_the_file_alone(tmp_path, capsys):
    hook = sys.unraisablehook
    with warnings_kept(tmp_path / "messages.log"):
        with errors_kept():
            logging.getLogger("absl").error("traceback of a thread")
        logging.getLogger("absl").error("seen again")
    assert "traceback of a thread" in (tmp_path / "messages.log").read_text() and sys.unraisablehook is hook
    seen = capsys.readouterr().err
    assert "seen again" in seen and "traceback" not in seen


def test_nothing_to_say_makes_no_file(tmp_path):
    with warnings_kept(tmp_path / "messages.log"):
        pass
    assert not list(tmp_path.iterdir())


def run_python(code, *args):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", textwrap.dedent(code), *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_compiled_code_writes_to_the_file_and_python_to_the_terminal(tmp_path):
    """A traceback is seen, too; afterwards the descriptor is what it was."""
    code = """
        import os, sys
        from pathlib import Path
        from glcanet_jax.training.messages import native_kept
        path = Path(sys.argv[1])
        with native_kept(path):
            os.write(2, b"slow compile\\n")
            print("seen inside", file=sys.stderr)
        os.write(2, b"seen after\\n")
        with native_kept(path):
            os.write(2, b"slow again\\n")
            raise ValueError("seen at last")
    """
    path = tmp_path / "messages.log"
    done = run_python(code, str(path))
    assert path.read_text() == "slow compile\nslow again\n"
    assert done.returncode == 1 and "slow" not in done.stderr.replace("native_kept", "").partition("Traceback")[0]
    assert done.stderr.startswith("seen inside\nseen after\nTraceback") and "ValueError: seen at last" in done.stderr


ALARMS = """E1127 05:59:27.136320   15079 slow_operation_alarm.cc:73] 
********************************
[Compiling module jit_chunk for CPU] Very slow compile? If you want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
{between}E1127 06:00:17.731094   14825 slow_operation_alarm.cc:140] The operation took 2m50.60624533s

********************************
[Compiling module jit_chunk for CPU] Very slow compile? If you want to file a bug, run with envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.
********************************
"""  # noqa: W291, as XLA writes them


@pytest.mark.parametrize("alone", [True, False])
def test_slow_compiling_is_no_message(tmp_path, alone):
    """What stood there before stays as it is, and what is said between and behind."""
    path, said = tmp_path / "messages.log", ALARMS.format(between="W1 x.cc:1] odd\n") + "*** other\n"
    path.write_text("before\n" + ALARMS)
    with native_kept(path, alone=alone), path.open("a") as file:
        file.write(said)
    assert path.read_text() == "before\n" + ALARMS + ("W1 x.cc:1] odd\n*** other\n" if alone else said)


@pytest.fixture
def terminal():
    """A terminal as the standard error of a process, 100 columns wide: ``run(code) -> what it showed``."""
    pty = pytest.importorskip("pty")

    def run(code):
        ours, theirs = pty.openpty()
        env = os.environ | {"PYTHONPATH": os.getcwd(), "COLUMNS": "120", "TERM": "xterm"}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env, text=True) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    piece = os.read(ours, 4096)
                except OSError:  # nobody writes any more
                    break
                if not piece:
                    break
                shown += piece
            printed = process.stdout.read()
        os.close(ours)
        assert process.returncode == 0, shown.decode()
        return shown.decode(), printed

    return run


def test_the_bar_tells_what_goes_on(terminal, tmp_path):
    """Also while the standard error's descriptor leads elsewhere; what is printed goes where it belongs."""
    shown, printed = terminal(f"""
        import os, time
        from pathlib import Path
        from glcanet_jax.progress import Progress
        from glcanet_jax.training.messages import native_kept
        with Progress(30, "training", "steps") as progress:
            with progress.doing("compiling (first time: about 7 s)"), native_kept(Path({str(tmp_path / "m.log")!r})):
                os.write(2, b"slow")
                time.sleep(0.3)
            progress.advance(10)
            progress.tell("loss 0.125, mIoU 0.500")
            time.sleep(0.3)
            with progress.part(2.5, "validating", "Mpx") as part:
                part.advance(1)
                time.sleep(0.3)
            print("printed")
            progress.advance(20)
    """)
    for words in (
        "compiling (first time: about 7 s)",
        "10/30 steps",
        "loss 0.125, mIoU 0.500",
        "1/2 Mpx",
        "30/30 steps",
    ):
        assert words in shown, shown
    assert "slow" not in shown and (tmp_path / "m.log").read_text() == "slow"
    assert printed == "printed\n"


def test_without_a_terminal_nothing_is_shown(capsys):
    with Progress(3, "training", "steps") as progress, progress.doing("compiling"):
        progress.tell("loss 1")
        with progress.part(3, "validating", "Mpx") as part:
            part.advance()
        progress.advance()
    assert capsys.readouterr() == ("", "")
