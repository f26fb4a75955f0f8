"""A stub of vLLM's server for drills of the launcher: it answers what the launcher asks, and fails as it is told.

STUB_SERVER says how: ok; unhealthy (503 for ever); silent (healthy, answers no request); dies (after STUB_SECONDS);
deaf (answers for STUB_SECONDS, then is healthy and silent).
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("STUB_SERVER", "ok")
SECONDS = float(os.environ.get("STUB_SECONDS", "5"))
STARTED = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """Answers /health, /v1/models and /v1/completions."""

    def do_GET(self) -> None:
        """Answer a question about the server."""
        if self.path == "/health":
            self._answer({}, 503 if MODE == "unhealthy" else 200)
        else:
            self._answer({"data": [{"id": "stub"}]})

    def do_POST(self) -> None:
        """Answer with one token, or never."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if MODE == "silent" or (MODE == "deaf" and time.monotonic() - STARTED > SECONDS):
            time.sleep(3600)
        self._answer({"choices": [{"text": "x"}]})

    def log_message(self, *arguments: object) -> None:
        """Say nothing of each request."""

    def _answer(self, fields: dict[str, object], status: int = 200) -> None:
        body = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve where the command line says, as vLLM would."""
    words = sys.argv[1:]
    host, port = words[words.index("--host") + 1], int(words[words.index("--port") + 1])
    print(f"stub server ({MODE}) on {host}:{port}", flush=True)
    print(f"stub server sees GPUs {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    if MODE == "dies":
        server.timeout = 0.2
        while time.monotonic() - STARTED < SECONDS:
            server.handle_request()
        sys.exit("stub server: died, as it was told to")
    server.serve_forever()


if __name__ == "__main__":
    main()
