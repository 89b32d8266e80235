"""What a killed walk left is believed only where it is whole: the sums that later blocks take are right, or made again."""

import random
import shutil

import numpy as np
import pytest

from glcanet_jax.errors import UserError
from glcanet_jax.inference.scratch import JOURNAL, Scratch, is_of

SIDE, FINGERPRINT = 3, {"of": "a scene"}  # blocks a side


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


def walk(folder, count, fingerprint=FINGERPRINT):
    """Computes blocks until ``count`` are done, as a walk does; every edge must be what its giver left."""
    computed = []
    with Scratch(folder, fingerprint) as scratch:
        for row in range(SIDE):
            for column in range(SIDE):
                if (row, column) in scratch.done or len(scratch.done) >= count:
                    continue
                for side, giver in (("right", (row, column - 1)), ("bottom", (row - 1, column))):
                    edge = scratch.load_edge(side, giver)
                    assert (edge is not None) == (min(giver) >= 0)
                    if edge is not None:
                        np.testing.assert_array_equal(edge, np.full((2, 3), 10 * giver[0] + giver[1], np.float32))
                for side, last in (("right", column == SIDE - 1), ("bottom", row == SIDE - 1)):
                    if not last:
                        scratch.save_edge(side, (row, column), np.full((2, 3), 10 * row + column, np.float32))
                scratch.commit((row, column))
                computed.append((row, column))
    return computed


@pytest.mark.parametrize("count", range(1, 9))
def test_what_is_whole_is_gone_on_with(tmp_path, count):
    assert len(walk(tmp_path, count)) == count
    assert is_of(tmp_path, FINGERPRINT) and not is_of(tmp_path, {"of": "another"})
    assert len(walk(tmp_path, 9)) == 9 - count and not list(tmp_path.glob("*.npy"))


def cut(data, rng):
    return data[: rng.randrange(len(data))]


def flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def lose_a_line(data, rng):
    lines = data.split(b"\n")
    lines.pop(rng.randrange(len(lines)))
    return b"\n".join(lines)


def swap_lines(data, rng):
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


DAMAGES = {
    "cut": cut,
    "flip": flip,
    "lost line": lose_a_line,
    "shuffled": swap_lines,
    "empty": lambda data, rng: b"",
    "garbage": lambda data, rng: rng.randbytes(60),
    "brackets": lambda data, rng: data.split(b"\n")[0] + b"\n" + b"[" * 5000 + b"\n",
    "NaN": lambda data, rng: data.replace(b"\0\0\0\0\0\0\0\0", b"\0\0\xc0\x7f\0\0\xc0\x7f", 1) + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_damaged_the_sums_are_right(tmp_path, damage, seed):
    """The journal and every edge in turn: what goes on computes with the right sums, and ends with all blocks."""
    rng = random.Random(seed)
    walk(tmp_path / "whole", rng.randrange(1, 9))
    for name in sorted(p.name for p in (tmp_path / "whole").iterdir()):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / name)
        (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes(), rng))
        is_of(folder, FINGERPRINT)
        walk(folder, 9)  # looks at every edge that it takes
        with Scratch(folder, FINGERPRINT) as last:
            assert len(last.done) == 9 and not list(folder.glob("*.npy"))


def test_an_edge_that_is_gone_begins_the_scene_anew(tmp_path):
    walk(tmp_path, 4)
    next(tmp_path.glob("bottom*.npy")).unlink()
    assert len(walk(tmp_path, 9)) == 9


def test_a_restart_leaves_nothing_finished(tmp_path):
    """Not in memory, and not for the next one that opens the folder."""
    walk(tmp_path, 4)
    with Scratch(tmp_path, FINGERPRINT) as scratch:
        scratch.restart()
        assert not scratch.done and not list(tmp_path.glob("*.npy"))
        assert scratch.load_edge("right", (0, 0)) is None
    assert is_of(tmp_path, FINGERPRINT) and len(walk(tmp_path, 9)) == 9


def test_a_line_cut_short_before_its_edges_were_dropped_loses_that_block_alone(tmp_path):
    """As a kill leaves it: the line is not whole, and what its block took is still there."""
    walk(tmp_path, 4)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    walk(tmp_path, 5)
    whole = (tmp_path / JOURNAL).read_bytes()
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / JOURNAL).write_bytes(whole[:-5])
    assert walk(tmp_path, 9) == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_pickle_in_the_place_of_an_edge_is_never_opened(tmp_path):
    walk(tmp_path, 1)
    np.save(tmp_path / "right_0_0.npy", np.array([{"a": print}], object), allow_pickle=True)
    assert len(walk(tmp_path, 9)) == 9


def test_an_edge_of_nobody_is_not_taken(tmp_path):
    """One that lies there, of a block that left none."""
    with Scratch(tmp_path, {}) as scratch:
        scratch.commit((0, 0))
        np.save(tmp_path / "right_0_0.npy", np.ones((2, 2)))
        assert scratch.load_edge("right", (0, 0)) is None
    with Scratch(tmp_path, {}) as again:
        assert again.load_edge("right", (0, 0)) is None and not list(tmp_path.glob("*.npy"))


def test_an_edge_that_changes_meanwhile_is_told(tmp_path):
    with Scratch(tmp_path, {}) as scratch:
        scratch.save_edge("right", (0, 0), np.ones((2, 2), np.float32))
        (tmp_path / "right_0_0.npy").write_bytes(b"other")
        with pytest.raises(UserError, match="right_0_0.npy was changed while it waited; remove .* run again"):
            scratch.load_edge("right", (0, 0))


def test_the_journal_of_an_older_version_is_begun_anew(tmp_path):
    (tmp_path / JOURNAL).write_text('{"of": "a scene"}\n[0, 0]\n[0, 1]\n')
    assert len(walk(tmp_path, 9)) == 9
