"""Settings of all tests: hypothesis profiles, one thread per worker, Triton's interpreter where there is no GPU."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported; what a test starts inherits it. `make test-numerical` asks for two.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from support.figures import Figures, count_cases

if not torch.cuda.is_available():
    # Triton decides at its import whether its own library can be interpreted; transformers and TRL import it too.
    os.environ["TRITON_INTERPRET"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # under nohup: what the tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "ci", derandomize=True, database=None, deadline=None, max_examples=40, suppress_health_check=_QUIET
)
settings.register_profile("tenfold", deadline=None, max_examples=400, suppress_health_check=_QUIET)
settings.register_profile("nightly", deadline=None, max_examples=2000, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", type=Path, help="write cases, seconds and failures of every test to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--figures") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Figures(config.getoption("--figures")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if "cases" not in dict(report.user_properties):  # which a test may count itself, by record_property
        report.user_properties.append(("cases", count_cases(item)))
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure the coverage of the core by its own quick tests: a line that only others reach counts as not tested.

    Watching lines takes half as long as running them, and for kernels in Triton's interpreter longer.
    """
    if not config.pluginmanager.hasplugin("pytest_cov"):  # which environments of other libraries lack
        return
    for item in items:
        own = item.path.is_relative_to(TESTS / "core") or item.path.is_relative_to(TESTS / "kernels")
        interpreted = getattr(item, "callspec", None) and item.callspec.params.get("backend") == "triton"
        if not own or item.get_closest_marker("slow") or interpreted:
            item.add_marker("no_cover")


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Every run of a trainer collects garbage, as measurements of memory do; imports need not be looked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real pretrained model, dequantized once for all workers."""
    from maxent_grpo.pipeline.starts import make_start  # which environments of other libraries lack

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with FileLock(folder / "smollm2.lock"):
        return Path(make_start("smollm2-135m", folder))


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_report_header() -> str:
    """Name what float sums depend on."""
    return f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
