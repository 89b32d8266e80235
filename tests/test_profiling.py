"""What programs need is told before they run, and refused where there is no room."""

import mmap
from pathlib import Path

import pytest

from glcanet_jax import profiling
from glcanet_jax.errors import UserError

MB = 2**20


@pytest.mark.parametrize(
    ("arguments", "resident", "whole", "running"),
    [(100, 100, 130, 30), (110, 100, 140, 40), (60, 100, 130, 30)],
    ids=["all its arguments", "more than lies there", "a part of what lies there"],
)
def test_what_a_program_needs_beside_what_lies_there(monkeypatch, capsys, arguments, resident, whole, running):
    sizes = {"arguments": arguments * MB, "outputs": 10 * MB, "temporaries": 20 * MB, "total": (arguments + 30) * MB}
    monkeypatch.setattr(profiling, "free_memory", lambda: 50 * MB)
    profiling.require_memory("it", sizes, resident * MB, "give it less")
    assert capsys.readouterr().out == f"it needs {whole} MB, {running} MB of it while it runs; 50 MB are free\n"
    monkeypatch.setattr(profiling, "free_memory", lambda: (running - 1) * MB)
    with pytest.raises(UserError, match=f"it needs {running} MB more memory, {running - 1} MB are free; give it less"):
        profiling.require_memory("it", sizes, resident * MB, "give it less", tell=False)


def resident_of(path):
    """Bytes of a file that lie in this process's memory; None where the system does not say."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        pytest.skip("this system does not say what is mapped")
    mine, found = False, 0
    for line in lines:
        if not line.split()[0].endswith(":"):
            mine = line.endswith(f" {path}")
        elif mine and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_a_mapped_file_is_let_go_and_is_there_again_when_it_is_read(tmp_path):
    content = bytes(range(256)) * 4096
    read, written = tmp_path / "read", tmp_path / "written"
    for path in (read, written):
        path.write_bytes(content)
    with read.open("rb") as one, written.open("rb") as other:
        only_read = mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ)
        own_copy = mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_COPY)
        own_copy[:3] = b"new"
        assert only_read[:] == content and resident_of(read) == len(content)
        for path in (read, written, tmp_path / "none"):
            profiling.release_mapped(path)
        assert resident_of(read) == 0 and only_read[:] == content
        assert own_copy[:] == b"new" + content[3:]
