"""Functions that a recipe names by a dotted path: a user's own file first, then what is installed."""

import importlib
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


def find_function(path: str, known: Iterable[str]) -> Callable[..., Any]:
    """Return the function at a dotted path such as `my_rewards.brevity`.

    A module of the working directory comes before anything of the same name that is installed.

    Args:
        path: the module and the name of the function in it.
        known: the names that would have done instead, for the complaint.

    Raises:
        ValueError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        function: Callable[..., Any] | None = getattr(_import_module(module, Path.cwd()), name) if module else None
    except Exception as error:  # whatever a module of the user's may raise
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"Expected a dotted path that can be imported, got {path!r}: {problem}.") from error
    if not callable(function):
        raise ValueError(f"Expected one of {', '.join(known)}, or a dotted path to a function, got {path!r}.")
    return function


@cache
def _import_module(name: str, folder: Path) -> ModuleType:
    """Return a module of a folder or, where the folder has none of that name, the installed one."""
    if not _has_module(folder, name):
        return importlib.import_module(name)
    # What is loaded under that name (an installed package, a script of ours) makes room and is put back after.
    package = name.partition(".")[0]
    namesakes = {} if _comes_from(sys.modules.get(package), folder) else _take_modules(package)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # for what the function imports when it is called
        if namesakes:
            _take_modules(package)
            sys.modules.update(namesakes)


def _has_module(folder: Path, name: str) -> bool:
    parts = name.split(".")
    if parts[0] == __name__.partition(".")[0]:
        return False  # a clone in the working directory is no second copy of this package
    file = folder.joinpath(*parts)
    return file.with_name(f"{parts[-1]}.py").is_file() or (file / "__init__.py").is_file()


def _comes_from(module: ModuleType | None, folder: Path) -> bool:
    if module is None:
        return False
    places = list(getattr(module, "__path__", [])) or [getattr(module, "__file__", None) or ""]
    return any(Path(place).with_suffix("") == folder / module.__name__ for place in places)


def _take_modules(package: str) -> dict[str, ModuleType]:
    """Return the loaded modules of a package, which are then loaded no more."""
    names = [name for name in sys.modules if name.partition(".")[0] == package]
    return {name: sys.modules.pop(name) for name in names}
