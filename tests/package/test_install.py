"""Both kinds of install give `maxent_grpo` and `maxent_grpo.adapters`, in environments of their own."""

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

WHERE = """
import maxent_grpo, maxent_grpo.adapters.torch_loop as adapter
print(maxent_grpo.__file__)
print(adapter.__file__)
adapter.MaxEntLoss()
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree as git sees it, so that building leaves nothing in the repository."""
    copy = tmp_path_factory.mktemp("source")
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    wanted = [file for file in files if file.split("/")[0] in {"maxent_grpo", "adapters"} or "/" not in file]
    for file in wanted:
        if (ROOT / file).exists():
            (copy / file).parent.mkdir(parents=True, exist_ok=True)
            (copy / file).write_bytes((ROOT / file).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new virtual environment that borrows torch and numpy, but not this project, from the present one."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return tmp_path / "env"


def test_the_wheel_holds_the_package_its_adapters_its_type_marker_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"maxent_grpo/target.py", "maxent_grpo/adapters/torch_loop.py", "maxent_grpo/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"maxent_grpo", "maxent_grpo-0.1.0.dist-info"}


def test_a_wheel_install_imports_from_its_own_environment(wheel: Path, environment: Path, tmp_path: Path) -> None:
    run(environment / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    package, adapter = run(environment / "bin/python", "-c", WHERE, cwd=tmp_path).split()
    assert Path(package).is_relative_to(environment)
    assert Path(adapter).is_relative_to(environment)


def test_an_editable_install_imports_from_the_source_tree(source: Path, environment: Path, tmp_path: Path) -> None:
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--editable")
    run(environment / "bin/python", "-m", "pip", "install", *options, source, cwd=tmp_path)
    package, adapter = run(environment / "bin/python", "-c", WHERE, cwd=tmp_path).split()
    assert Path(package) == source / "maxent_grpo" / "__init__.py"
    assert Path(adapter) == source / "adapters" / "torch_loop.py"
