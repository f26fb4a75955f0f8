"""Whether a job's server and trainer are alive: health, one token, progress."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISSES = 3
"""Failed checks in a row after which a server counts as dead, or as silent."""
QUIET = 300.0
"""Seconds without progress after which the server is asked for a token: most steps are shorter."""
GENERATED = "vllm:generation_tokens_total"
HEALTH_SECONDS, TOKEN_SECONDS = 10.0, 60.0
# Nodes talk to each other directly, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask_health(url: str, seconds: float = HEALTH_SECONDS) -> bool:
    """Tell whether a server says that it is well; a server may say so and answer no request."""
    try:
        with _OPENER.open(f"{url}/health", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


def ask_token(url: str, seconds: float = TOKEN_SECONDS) -> bool:
    """Tell whether a server generates a token in time."""
    try:
        with _OPENER.open(f"{url}/v1/models", timeout=seconds) as answer:
            model = json.load(answer)["data"][0]["id"]
        # The prompt is token 0, which every vocabulary has.
        body = json.dumps({"model": model, "prompt": [0], "max_tokens": 1}).encode()
        request = urllib.request.Request(
            f"{url}/v1/completions", body, {"Content-Type": "application/json"}, method="POST"
        )
        with _OPENER.open(request, timeout=seconds) as answer:
            return bool(answer.status == 200 and json.load(answer)["choices"])
    except (OSError, urllib.error.URLError, ValueError, KeyError, IndexError):
        return False


@dataclass
class HealthWatch:
    """Counts the checks of /health that fail in a row.

    Attributes:
        url: of the server.
        every: seconds between two checks.
    """

    url: str
    every: float = 5.0
    misses: int = 0
    _due: float = field(default=0.0, repr=False)

    def is_dead(self) -> bool:
        """Check if a check is due; tell whether too many failed, and no token comes either.

        A server under load may be too slow for /health and still generate.
        """
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self.every
            self.misses = 0 if ask_health(self.url) else self.misses + 1
        if self.misses >= MISSES and ask_token(self.url):
            self.misses = 0
        return self.misses >= MISSES


def count_tokens(url: str, seconds: float = HEALTH_SECONDS) -> float | None:
    """Return how many tokens a server has generated, by vLLM's metrics; None where it does not say."""
    try:
        with _OPENER.open(f"{url}/metrics", timeout=seconds) as answer:
            lines = answer.read().decode().splitlines()
        counts = [float(line.split()[-1]) for line in lines if line.startswith(GENERATED)]
    except (OSError, urllib.error.URLError, ValueError):
        return None
    return sum(counts) if counts else None


@dataclass
class SilenceWatch:
    """Asks a server for tokens while the trainer makes no progress.

    Attributes:
        url: of the server.
        every: seconds between two questions.
    """

    url: str
    every: float = 60.0
    misses: int = 0
    _due: float = field(default=0.0, repr=False)
    _count: float | None = field(default=None, repr=False)

    def is_silent(self, age: float) -> bool:
        """Ask if a question is due; tell whether too many in a row had no answer.

        An update of the weights or a long queue holds one token back for a while. While the server's count of tokens
        rises it is at work.

        Args:
            age: seconds since the trainer's last progress.
        """
        if age <= QUIET:
            self.misses = 0
        elif time.monotonic() >= self._due:
            is_answering = ask_token(self.url)
            count = count_tokens(self.url)
            is_working = count is not None and count != self._count
            self._count = count
            self.misses = 0 if is_answering or is_working else self.misses + 1
            self._due = time.monotonic() + self.every
        return self.misses >= MISSES


@dataclass(frozen=True)
class Progress:
    """What the trainer last wrote of itself.

    Attributes:
        step: of the optimizer; -1 before the first line.
        age: seconds since then.
        stopped: whether it has saved a checkpoint and stopped as it was asked to.
    """

    step: int
    age: float
    stopped: bool


def read_progress(file: Path, since: float) -> Progress:
    """Return the trainer's progress; before its first line the age counts from the start of the trainer.

    Args:
        file: that the trainer writes.
        since: the time at which the trainer was started.
    """
    try:
        fields: dict[str, Any] = json.loads(file.read_text())
        written = file.stat().st_mtime
    except (OSError, ValueError):
        fields, written = {}, since
    age = time.time() - max(written, since)
    return Progress(int(fields.get("step", -1)), age, bool(fields.get("stopped", False)))
