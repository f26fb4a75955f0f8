"""What counts as alive: a server that only says so does not, and progress is counted from its own start."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from maxent_grpo.pipeline.launch import watch
from maxent_grpo.pipeline.launch.watch import (
    GENERATED,
    MISSES,
    QUIET,
    HealthWatch,
    SilenceWatch,
    ask_health,
    ask_token,
    read_progress,
)


class Server(http.server.ThreadingHTTPServer):
    """A stub of vLLM's server.

    Attributes:
        is_silent: whether it answers /health alone.
    """

    daemon_threads = True
    is_silent = False
    is_unwell = False
    tokens = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path == "/metrics":
            self.answer_text(f"# TYPE counter\n{GENERATED}{{engine='0'}} {self.server.tokens}\n")
        elif self.path == "/health":
            self.answer({}, 503 if self.server.is_unwell else 200)
        else:
            self.answer({"data": [{"id": "model"}]})

    def do_POST(self) -> None:
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.is_silent:
            time.sleep(5)
        self.answer({"choices": [{"text": "x"}] if fields["model"] == "model" else []})

    def answer(self, fields: object, status: int = 200) -> None:
        self.answer_text(json.dumps(fields), status)

    def answer_text(self, text: str, status: int = 200) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_server_that_is_healthy_and_answers_nothing_is_not_ready(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    assert ask_health(url)
    assert ask_token(url)
    server.is_silent = True
    assert ask_health(url)
    assert not ask_token(url, 0.2)


def test_a_proxy_of_the_environment_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert ask_health(f"http://127.0.0.1:{server.server_port}")


def test_a_server_is_dead_after_misses_in_a_row(server: Server) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    health = HealthWatch(url, every=0.0)
    assert not health.is_dead()
    health.url = "http://127.0.0.1:9"
    assert [health.is_dead() for _ in range(MISSES)] == [False] * (MISSES - 1) + [True]
    health.url = url
    assert not health.is_dead()


def test_a_server_that_is_unwell_and_generates_is_not_dead(server: Server) -> None:
    health = HealthWatch(f"http://127.0.0.1:{server.server_port}", every=0.0)
    server.is_unwell = True
    assert not any(health.is_dead() for _ in range(2 * MISSES))


def test_a_server_is_silent_after_misses_in_a_row_without_progress(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ask_token", lambda url: not server.is_silent)
    silence = SilenceWatch(f"http://127.0.0.1:{server.server_port}", every=0.0)
    assert not any(silence.is_silent(QUIET + 1) for _ in range(MISSES))
    server.is_silent = True
    assert not any(silence.is_silent(QUIET) for _ in range(2 * MISSES))
    assert [silence.is_silent(QUIET + 1) for _ in range(MISSES)] == [False] * (MISSES - 1) + [True]
    assert not silence.is_silent(1.0)


def test_a_server_whose_count_of_tokens_rises_is_at_work(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "ask_token", lambda url: False)
    silence = SilenceWatch(f"http://127.0.0.1:{server.server_port}", every=0.0)
    for _ in range(2 * MISSES):
        server.tokens += 1
        assert not silence.is_silent(QUIET + 1)
    assert [silence.is_silent(QUIET + 1) for _ in range(MISSES)] == [False] * (MISSES - 1) + [True]


def test_progress_counts_from_the_start_of_the_trainer_until_there_is_a_step(tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    now = time.time()
    assert read_progress(file, now - 100).age == pytest.approx(100, abs=5)
    assert read_progress(file, now - 100).step == -1
    file.write_text(json.dumps({"step": 3, "stopped": True}))
    progress = read_progress(file, now - 100)
    assert (progress.step, progress.stopped) == (3, True)
    assert progress.age < 5
    file.write_text("half a li")
    assert read_progress(file, now).step == -1
