"""Every kind of install gives the whole of `maxent_grpo`, in environments of their own and away from the clone."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import maxent_grpo

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

FIRST_RUN = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), flags=re.DOTALL)[0]


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
def archives(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the source archive and of the wheel, which is built from that archive."""
    folder = tmp_path_factory.mktemp("archives")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (built,) = archives.glob("*.whl")
    return built


def list_pythons() -> list[str]:
    """Return this interpreter; if EVERY_PYTHON is set, one of each version that the metadata name and is here."""
    if not os.environ.get("EVERY_PYTHON"):
        return [sys.executable]
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [name.rsplit(" ", 1)[-1] for name in metadata if re.search(r"Python :: 3\.", name)]
    pythons = {}
    for wanted in versions:
        kept = sorted(Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python"))
        on_path = shutil.which(f"python{wanted}")
        for candidate in (sys.executable, on_path, *map(str, kept)):
            if candidate and wanted not in pythons and report_version(candidate) == wanted:
                pythons[wanted] = candidate
    return list(pythons.values())


def report_version(python: str) -> str:
    """Return the version of an interpreter that can make environments, or nothing."""
    program = "import ensurepip, sys, venv; print('.'.join(map(str, sys.version_info[:2])))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=False).stdout.strip()


@pytest.fixture
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A new virtual environment of an interpreter, with nothing but torch, as the README says to start."""
    run(request.param, "-m", "venv", tmp_path / "empty", cwd=tmp_path)
    # In the version that is here: another one may be a build that brings gigabytes of CUDA.
    torch = f"torch=={read_version('torch')}"
    run(tmp_path / "empty/bin/pip", "install", "--quiet", "--no-compile", torch, cwd=tmp_path)
    yield tmp_path / "empty"
    shutil.rmtree(tmp_path / "empty")


def read_version(package: str) -> str:
    """Return the public version of an installed package: without the build behind its plus sign."""
    return version(package).split("+")[0]


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


def test_the_archive_of_the_source_holds_what_the_wheel_is_built_from(archives: Path) -> None:
    (archive,) = archives.glob("*.tar.gz")
    assert archive.name == f"maxent_grpo-{maxent_grpo.__version__}.tar.gz"
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[-1] for name in files.getnames()}
    assert {
        "README.md",
        "LICENSE",
        "pyproject.toml",
        "adapters/verl/options.py",
        "examples/pipeline/train.py",
    } <= names


@pytest.mark.parametrize("empty", list_pythons(), ids=report_version, indirect=True)
def test_an_empty_environment_trains_with_the_wheel_and_what_it_asks_for(
    wheel: Path, empty: Path, tmp_path: Path
) -> None:
    before = run(empty / "bin/pip", "freeze", cwd=tmp_path).splitlines()
    run(empty / "bin/pip", "install", "--quiet", "--no-compile", wheel, cwd=tmp_path)
    added = {
        line.split("==")[0].split(" @")[0] for line in run(empty / "bin/pip", "freeze", cwd=tmp_path).splitlines()
    }
    assert added - {line.split("==")[0] for line in before} <= {"maxent-grpo", "numpy"}
    run(empty / "bin/python", "-c", FIRST_RUN, cwd=tmp_path)
    (tmp_path / "rollouts.jsonl").write_text('{"rewards": [1, 0, 0, 1]}\n')
    assert "suggested τ" in run(empty / "bin/maxent-preview", "rollouts.jsonl", cwd=tmp_path)
    for module, extra in {"adapters.trl": "trl", "pipeline.train": "pipeline"}.items():
        command = [empty / "bin/python", "-c", f"import maxent_grpo.{module}"]
        failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert f"pip install 'maxent-grpo[{extra}]'" in failed.stderr


def test_the_version_is_the_same_wherever_it_stands() -> None:
    assert f"\nversion: {maxent_grpo.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    released = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[:1] in ([], [maxent_grpo.__version__])
