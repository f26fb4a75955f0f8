"""The environment of the rehearsal's jobs: vLLM for CPUs, TRL and DeepSpeed from a lock file, kept between runs."""

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "examples/constraints/cpu.txt"
INSTALL = ROOT / "examples/constraints/install.sh"
LAYER = ROOT / "build/rehearsal/venv"
COMPLETE = "complete"
COMPILE = "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load()"


@dataclass(frozen=True)
class Environment:
    """Where the jobs' Python is.

    Attributes:
        activate: the file to source.
        python: the interpreter.
        extensions: compiled operators of DeepSpeed.
        was_there: whether nothing had to be installed.
    """

    activate: Path
    python: Path
    extensions: Path
    was_there: bool


def make_environment() -> Environment:
    """Return the environment, made now if the lock file has changed or nothing is there.

    The packages are kept under a name with the lock file's hash. This checkout and the weight updates over gloo lie
    in a small environment over it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = hashlib.sha256(f"{version}\n{LOCK.read_text()}{INSTALL.read_text()}".encode()).hexdigest()[:12]
    folder = cache / "maxent-grpo" / f"rehearsal-{name}"
    was_there = (folder / COMPLETE).exists()
    if not was_there:
        shutil.rmtree(folder, ignore_errors=True)  # a build that was stopped leaves half of one
        _call(sys.executable, "-m", "venv", str(folder))
        _call("bash", str(INSTALL), str(folder / "bin/python"), str(LOCK))
        _compile_operators(folder)
        (folder / COMPLETE).touch()
    _make_layer(folder, version)
    return Environment(LAYER / "bin/activate", LAYER / "bin/python", folder / "extensions", was_there)


def _compile_operators(folder: Path) -> None:
    """Compile what DeepSpeed would compile in the first job, whose death would leave a lock for the next."""
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"  # ninja is there
    _call(str(folder / "bin/python"), "-c", COMPILE, environment=environment)


def _make_layer(folder: Path, version: str) -> None:
    """Make the environment of this checkout over those packages, if it is not there yet."""
    mark = LAYER / COMPLETE
    sources = [ROOT / "pyproject.toml", ROOT / "examples/rehearsal/cpu_sync/pyproject.toml"]
    state = "\n".join([str(folder), *(file.read_text() for file in sources)])
    if mark.exists() and mark.read_text() == state:
        return
    shutil.rmtree(LAYER, ignore_errors=True)
    _call(sys.executable, "-m", "venv", str(LAYER))
    packages = LAYER / f"lib/python{version}/site-packages"
    (packages / "below.pth").write_text(f"{folder}/lib/python{version}/site-packages\n")
    pip = [str(LAYER / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    # Building needs the setuptools of the packages below, not the older one that comes with a new environment.
    _call(str(LAYER / "bin/python"), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools")
    for source in sources:
        _call(*pip, "--editable", str(source.parent))
    (LAYER / "bin/ninja").symlink_to(folder / "bin/ninja")
    mark.write_text(state)


def _call(*command: str, environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"rehearsal: {' '.join(command)} failed:\n{result.stdout[-3000:]}{result.stderr[-3000:]}")
