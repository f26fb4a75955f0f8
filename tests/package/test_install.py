"""Both kinds of install give the whole of `maxent_grpo`, in environments of their own and away from the clone."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
pytestmark = pytest.mark.slow

WHERE = """
import maxent_grpo, maxent_grpo.adapters.torch_loop as adapter, maxent_grpo.pipeline.tasks as tasks
print(maxent_grpo.__file__)
print(adapter.__file__)
print(tasks.__file__)
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
    for file in files:
        if ("/" not in file or file.startswith(tuple(FOLDERS.values()))) and (ROOT / file).exists():
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
    """A new virtual environment that borrows all packages but this project from the present one."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # An editable install is a .pth file of its own, which is not read in a folder that another .pth file adds.
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    return tmp_path / "env"


def test_the_wheel_holds_every_file_of_the_packages_and_the_licence(wheel: Path, source: Path) -> None:
    installed = {
        f"{package.replace('.', '/')}/{file.relative_to(source / folder)}"
        for package, folder in FOLDERS.items()
        for file in (source / folder).rglob("*")
        if file.is_file()
    }
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == installed
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_a_wheel_install_imports_from_its_own_environment(wheel: Path, environment: Path, tmp_path: Path) -> None:
    run(environment / "bin/python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    for file in run(environment / "bin/python", "-c", WHERE, cwd=tmp_path).split():
        assert Path(file).is_relative_to(environment)
    for command in ("train", "evaluate"):
        module = f"maxent_grpo.pipeline.{command}"
        assert "usage: " in run(environment / "bin/python", "-m", module, "--help", cwd=tmp_path)


def test_an_editable_install_imports_from_the_source_tree(source: Path, environment: Path, tmp_path: Path) -> None:
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--editable")
    run(environment / "bin/python", "-m", "pip", "install", *options, source, cwd=tmp_path)
    package, adapter, tasks = run(environment / "bin/python", "-c", WHERE, cwd=tmp_path).split()
    assert Path(package) == source / "maxent_grpo" / "__init__.py"
    assert Path(adapter) == source / "adapters" / "torch_loop.py"
    assert Path(tasks) == source / "examples" / "pipeline" / "tasks" / "__init__.py"
