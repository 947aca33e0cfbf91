"""What `vllm serve` looks like from outside, as a command of its own: `fake_vllm.py serve MODEL --port P …`.

The variable FAKE holds JSON: `folder`, where it writes what it was asked, and how it misbehaves:
  says       printed at the start
  ends       True: it ends after that
  unhealthy  True: it never lists its model
  kills      requests, counted over all starts from 0, at which it kills itself before it answers
  stubborn   True: it ignores SIGTERM
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPLY = "<reasoning>{seed} {i}</reasoning><answer>motion: first, overall: tie</answer>"


def main() -> int:
    fake = json.loads(os.environ["FAKE"])
    folder = Path(fake["folder"])
    values = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=False))
    child = subprocess.Popen(["sleep", "600"])
    write(folder, "starts", argv=sys.argv, pid=os.getpid(), child=child.pid, variables=dict(os.environ))
    print(fake.get("says", "starting"), flush=True)
    if fake.get("ends"):
        return 3
    if fake.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    address = (values["--host"], int(values["--port"]))
    with ThreadingHTTPServer(address, handler(fake, folder, values["--served-model-name"])) as http:
        http.serve_forever(0.01)
    return 0


def write(folder: Path, name: str, **row: object) -> int:
    """Append a line; returns its number."""
    with lock, (folder / name).open("a+") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        file.seek(0)
        return len(file.readlines()) - 1


lock = threading.Lock()


def handler(fake: dict, folder: Path, name: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send({} if fake.get("unhealthy") else {"data": [{"id": name}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = write(folder, "requests", seed=body["seed"], n=body.get("n", 1), model=body["model"])
            if number in fake.get("kills", []):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)  # so that others are under way when one kills the server
            texts = [REPLY.format(seed=body["seed"], i=i) for i in range(body.get("n", 1))]
            choices = [
                {"index": i, "finish_reason": "stop", "message": {"content": text}}
                for i, text in enumerate(texts)
            ]
            self.send({"model": name, "choices": choices})

        def send(self, answer: dict) -> None:
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    sys.exit(main())
