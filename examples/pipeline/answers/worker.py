"""A process that compares answers by math-verify, one pair at a time, until its pipe is closed.

    python worker.py FILE_DESCRIPTOR SECONDS

It imports nothing else, so that it starts in a second; it can be killed at any time, which is what a comparison
that never ends needs. Limits of its own keep it from outliving its parent: memory, and processor time per pair.
"""

import json
import logging
import resource
import sys
from multiprocessing.connection import Connection

from math_verify import parse, verify

MEMORY = 4 * 2**30


def compare_answers(gold: str, answer: str) -> dict[str, object]:
    """Return {"equal": bool}, or {"error": text} where the comparison itself failed."""
    try:
        expected = parse(mark_formula(gold), parsing_timeout=None, raise_on_error=True)
        if not expected:
            return {"error": f"the reference {gold!r} cannot be read"}
        parsed = parse(mark_formula(answer), parsing_timeout=None, raise_on_error=True)
        return {"equal": bool(verify(expected, parsed, timeout_seconds=None, raise_on_error=True))}
    except (Exception, RecursionError, MemoryError) as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def mark_formula(text: str) -> str:
    r"""Return the text as a formula that math-verify finds, unless it marks its own.

    Dollars of money, a full stop and the degree sign are what it stumbles over.

    >>> mark_formula(r"\frac12"), mark_formula("$2$"), mark_formula(r"\$5.")
    ('\\boxed{\\frac12}', '$2$', '\\boxed{5}')
    """
    text = text.replace("\\$", "").replace("°", "^\\circ").strip().removesuffix(".")
    return text if "$" in text or "\\boxed" in text or "\\(" in text else f"\\boxed{{{text}}}"


def serve_requests(connection: Connection, seconds: float) -> None:
    """Answer requests until the other end is closed."""
    logging.disable(logging.WARNING)  # math-verify says at length that its own timeout is off
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    compare_answers("1", "1")
    connection.send_bytes(b"ready")
    while True:
        try:
            pair = json.loads(connection.recv_bytes())
        except EOFError:
            return
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        connection.send_bytes(json.dumps(compare_answers(*pair)).encode())


if __name__ == "__main__":
    serve_requests(Connection(int(sys.argv[1])), float(sys.argv[2]))
