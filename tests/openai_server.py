"""A chat completions server on localhost, in threads of the test process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from reward.question import write_reply

GOOD = write_reply("both move", {"motion": "first", "overall": "tie"})


def choice(
    text: str | None = GOOD, finish_reason: str = "stop", index: int = 0, **message: Any
) -> dict[str, Any]:
    return {
        "index": index,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text, **message},
        "logprobs": {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]},
    }


class Answer:
    """What the server sends: `seconds` late, and never before `held` is set, if there is such an event."""

    def __init__(
        self,
        *choices: dict[str, Any],
        status: int = 200,
        body: Any = None,
        headers: dict[str, str] | None = None,
        seconds: float = 0.0,
        held: threading.Event | None = None,
        model: str | None = "tiny",
    ) -> None:
        if body is None:
            body = {"object": "chat.completion", "model": model, "choices": list(choices)}
        self.status, self.headers, self.seconds, self.held = status, headers or {}, seconds, held
        self.bytes = body.encode() if isinstance(body, str) else json.dumps(body).encode()


def error(status: int, message: str = "no", **headers: str) -> Answer:
    return Answer(status=status, body={"error": {"message": message}}, headers=headers)


def well(number: int, body: dict[str, Any]) -> Answer:
    """A good reply for each that is asked for."""
    return Answer(*(choice(index=i) for i in range(body.get("n", 1))))


class FakeServer:
    """`answer(number, body)` is called for the number-th request, counted from 0."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Answer] = well) -> None:
        self.answer, self.models = answer, Answer(body={"data": [{"id": "tiny"}, {"id": "other"}]})
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.socket.close()

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        answer = self.answer(number, body)
        time.sleep(answer.seconds)
        if answer.held is not None:
            answer.held.wait(10)
        with self._lock:
            self.under_way -= 1
        return answer


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self._send(server.models)

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(server.take(body, dict(self.headers)))

        def _send(self, answer: Answer) -> None:
            try:
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.bytes)), **answer.headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(answer.bytes)
            except OSError:
                self.close_connection = True  # the client has given up

        def log_message(self, *_: object) -> None:
            pass

    return Handler
