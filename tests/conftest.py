"""Four CPU devices, strict ranks, a compilation cache, and the fixtures that many tests share."""

import gc
import os
import signal
import tempfile
import threading
from importlib.metadata import version
from pathlib import Path

# what tests trace stays; looking through it at Python's own 700 objects takes up to a seventh of their time
gc.set_threshold(50_000)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compile, not run, takes the time
)
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # later ones stop at flags that they have no more
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # fusions from the emitters that need a quarter of the time
    QUICK += (
        " --xla_cpu_parallel_codegen_split_count=1"  # and a program in one piece: tests are what runs beside each other
    )
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4 {QUICK}"

# for the commands that tests run, too: many of them compile the same small networks
CACHE = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "glcanet_jax_tests"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / "xla")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of them compiles the package anew
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # a network starts with hundreds of small programs

# a parent may ignore these (a script that starts us in the background ignores SIGINT), and processes that tests start would, too
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# how long an example takes is the machine's matter
hypothesis.settings.register_profile("anywhere", deadline=None)
hypothesis.settings.load_profile("anywhere")
jax.config.update("jax_numpy_rank_promotion", "raise")


# what takes longest comes first, so that no worker is left alone with it at the end
FIRST = (
    "test_cli.py", "test_glcanet.py", "test_mapping.py", "test_walk.py", "test_networks.py", "test_step.py", "test_glnet.py",
    "test_stablehlo.py", "test_dilated_networks.py", "test_docs.py", "test_segmenter.py", "test_table1.py", "test_vgg_networks.py",
    "test_demo.py", "test_collapse.py", "test_stopping.py", "test_extending.py", "test_residents.py", "test_compare.py", "test_folding.py", "test_attention_maps.py", "test_speed.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real scenes and weights that the project does not ship."""
    folder = Path(os.environ.get("GLCANET_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (GLCANET_SHARED names another place)")
    return folder


@pytest.fixture(scope="session")
def one_store():
    """An object store on this machine, for all tests of a process."""
    from tests.data import store_server

    with store_server.serving() as server:
        yield server


@pytest.fixture
def store(one_store, monkeypatch, tmp_path):
    """The store, empty, with the environment of a client that reaches it and nothing else."""
    from tests.data import store_server

    pytest.importorskip("obstore", reason="obstore is not installed (pip install 'glcanet-jax[store]')")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in store_server.settings(one_store.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one_store.clear()
    return one_store
