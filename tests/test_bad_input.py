"""The campaign of bad input: ``python -m pytest -m slow -n0 -s tests/test_bad_input.py``, about twelve minutes on two cores.

Every command gets what is damaged, odd, contradictory or in the way. Right is: exit code 2 (1 of ``check`` with problems), one
line that says what is wrong, nothing touched beside --out, nothing half-made under a final name, in time. Or the input is
taken, and a look at the result finds it right. Everything else is a fault; none is expected. A verdict is printed for each.

``GLCANET_CAMPAIGN=60`` takes so many inputs, some of every kind, and a twentieth as many kills; ``GLCANET_CAMPAIGN_SEED`` draws
others; ``GLCANET_CAMPAIGN_KINDS=weights,area`` takes those kinds alone; ``GLCANET_CAMPAIGN_SITE`` keeps what is sound for the next run.
"""

import collections
import itertools
import os
import pathlib
import queue
import threading

import pytest

from tests.campaign import bench, cases, kills, plan, verdict
from tests.campaign.hubs import Odd
from tests.hub.server import serving

COUNT = int(os.environ.get("GLCANET_CAMPAIGN", 0))  # 0: all
SEED = int(os.environ.get("GLCANET_CAMPAIGN_SEED", 0))
KINDS = [kind for kind in os.environ.get("GLCANET_CAMPAIGN_KINDS", "").split(",") if kind]
WORKERS = int(os.environ.get("GLCANET_CAMPAIGN_WORKERS", 2))
LEAST, KILLS = 500, 50
APART = 40  # every so many cases one is the real command in a process of its own

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What is sound: data, weights, a scene; a run, maps, and what a stopped ``predict`` left."""
    folder = pathlib.Path(os.environ.get("GLCANET_CAMPAIGN_SITE") or tmp_path_factory.mktemp("campaign") / "site")
    if not folder.exists():
        cases.write_site(folder)
        cases.write_results(folder)
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, so that no other is ever asked."""
    with serving(Odd) as (address, _):
        for name, value in (("ENDPOINT", address), ("TOKEN", "mine"), ("HOME", str(tmp_path / "hub"))):
            monkeypatch.setenv(f"HF_{name}", value)
        yield


def tried(chosen, folder, site):
    """The verdicts, as they come, of a few processes."""
    waiting, verdicts = queue.Queue(), queue.Queue()
    for numbered in enumerate(chosen):
        waiting.put(numbered)

    def work():
        worker = bench.Worker()
        try:
            while True:
                number, case = waiting.get_nowait()
                apart = number % APART == APART - 1
                verdicts.put(bench.attempt(case, folder / f"case{number}", site, None if apart else worker))
        except queue.Empty:
            pass
        except BaseException as error:
            verdicts.put(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for _ in chosen:
        found = verdicts.get()
        if isinstance(found, BaseException):
            raise found
        yield found
    for thread in threads:
        thread.join()


def test_bad_input_ends_in_one_line(site, hub, tmp_path):
    every = plan.cases(SEED, site)
    assert len({(case.kind, case.name, case.argv) for case in every}) >= LEAST
    assert {case.command for case in every} >= set(cases.ARGV)
    chosen = plan.some(every, COUNT, SEED) if COUNT else every
    chosen = [case for case in chosen if not KINDS or case.kind in KINDS]
    before, words, faults = verdict.snapshot(site), collections.Counter(), []
    for number, found in enumerate(tried(chosen, tmp_path, site), 1):
        words[found.word] += 1
        faults += [str(found)] * (found.word == "FAULT")
        print(f"{number:4}/{len(chosen)} {found}", flush=True)
    print(f"{len(chosen)} inputs: {', '.join(f'{count} {word}' for word, count in words.items())}")
    assert not verdict.changes(before, verdict.snapshot(site))
    assert not faults, "\n".join(faults)


def test_predict_that_is_killed_goes_on(site, tmp_path):
    """kill -9, Ctrl-C and SIGTERM at random moments: what is final is whole, and in the end the bytes are the undisturbed run's."""
    count, side = (max(1, COUNT // 20), 384) if COUNT else (KILLS, 1024)
    faults = []
    for what, wrong in itertools.chain(kills.kills(tmp_path, site / "w.safetensors", count, side, SEED)):
        print(f"{what}: {', '.join(wrong) or 'right'}", flush=True)
        faults += [f"{what}: {fault}" for fault in wrong]
    assert not faults, "\n".join(faults)
