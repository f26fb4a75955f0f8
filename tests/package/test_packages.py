"""Every folder that holds a package is listed in pyproject.toml: what is not listed is in no wheel."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def list_packages() -> set[str]:
    """Return the packages of the source folders, under the names that they are installed by."""
    return {
        ".".join([name, *marker.parent.relative_to(ROOT / folder).parts])
        for name, folder in SETTINGS["package-dir"].items()
        for marker in (ROOT / folder).rglob("__init__.py")
    }


def test_every_folder_with_a_package_is_listed() -> None:
    assert sorted(SETTINGS["packages"]) == sorted(list_packages())
