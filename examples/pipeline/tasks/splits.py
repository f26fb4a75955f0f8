"""Training and evaluation problems, kept apart by the identity of the problem."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Identified(Protocol):
    """Anything with an `id`; one id is one problem."""

    @property
    def id(self) -> str: ...


def read_id(problem: Identified) -> str:
    """Return the identity of a problem."""
    return problem.id


P = TypeVar("P", bound=Identified)


@dataclass(frozen=True)
class Split(Generic[P]):
    """Problems to train on, and problems that are only ever evaluated; no id is on both sides."""

    train: tuple[P, ...]
    held_out: tuple[P, ...]


def split(problems: Iterable[P], *, held_out: int, seed: int, entity: Callable[[P], str] = read_id) -> Split[P]:
    """Hold out the `held_out` problems whose hashed entities come first.

    The order of the problems does not matter, and both sides come in hash order, so a prefix of either is a
    random sample of it. Single-mode control problems are split by a call of their own.

    Args:
        problems: to split.
        held_out: how many are held out; a few more where the last entity has more than one.
        seed: of the hash.
        entity: what a problem is about. All problems on an entity are on one side.

    Raises:
        ValueError: if an id occurs twice, or held_out is not in 0..number of problems.

    >>> from maxent_grpo.pipeline.tasks import countdown
    >>> sides = split(countdown.problems(), held_out=87, seed=0)
    >>> len(sides.train), len(sides.held_out)
    (700, 87)
    """
    by_id: dict[str, P] = {}
    for problem in problems:
        if by_id.setdefault(problem.id, problem) is not problem:
            raise ValueError(f"Expected every problem once, got {problem.id!r} twice.")
    if not 0 <= held_out <= len(by_id):
        raise ValueError(f"Expected 0 <= held_out <= {len(by_id)}, got held_out={held_out}.")
    ordered = sorted(by_id.values(), key=lambda each: (_hash(entity(each), seed), _hash(each.id, seed)))
    while 0 < held_out < len(ordered) and entity(ordered[held_out]) == entity(ordered[held_out - 1]):
        held_out += 1
    return Split(train=tuple(ordered[held_out:]), held_out=tuple(ordered[:held_out]))


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
