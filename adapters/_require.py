"""Whether a framework is there, in a version whose private methods an adapter was tested against."""

from importlib.metadata import PackageNotFoundError, version


def require(package: str, lowest: tuple[int, int], below: tuple[int, int], extra: str) -> None:
    """Check that `package` is installed with lowest <= its (major, minor) version < below.

    Args:
        package: the name on PyPI.
        lowest: first supported (major, minor).
        below: first (major, minor) that is not supported.
        extra: the optional dependencies of this project that bring it.

    Raises:
        ImportError: naming the supported range and the pip command that brings it.

    >>> require("torch", (2, 0), (3, 0), "torch")
    >>> require("no-such-framework", (1, 2), (1, 4), "none")
    Traceback (most recent call last):
    ImportError: Expected no-such-framework>=1.2,<1.4, got none installed: pip install 'maxent-grpo[none]'.
    """
    supported = f"{package}>={'.'.join(map(str, lowest))},<{'.'.join(map(str, below))}"
    try:
        installed = version(package)
    except PackageNotFoundError:
        installed = "none installed"
    else:
        major, minor = (int(part) for part in installed.split(".")[:2])
        if lowest <= (major, minor) < below:
            return
    raise ImportError(f"Expected {supported}, got {installed}: pip install 'maxent-grpo[{extra}]'.")
