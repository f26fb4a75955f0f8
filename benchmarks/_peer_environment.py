"""Environments for packages of others that exclude this one's versions, kept between runs."""

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path


def build_environment(name: str, packages: Sequence[str], *flags: str) -> str:
    """Return the Python of an environment, built where it is missing; it sees this one's packages last.

    Args:
        name: of the environment.
        packages: with their versions.
        flags: of pip.
    """
    key = hashlib.sha256(f"{packages} {flags} {sys.version} {sys.prefix}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "maxent-grpo" / f"{name}-{key}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        seen = [path for path in sys.path if path.endswith("site-packages")]
        (Path(site) / "seen.pth").write_text("\n".join(seen) + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *flags, *packages], check=True)
        (folder / "complete").touch()  # last, so that a build that was cut off is made again
    return str(python)
