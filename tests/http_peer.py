"""An HTTP server on loopback that answers as it is told and remembers what it was asked."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpPeer:
    """``answers`` are (status, headers, body), the last one for good; ``asked`` what came."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=lambda: [(200, {}, b"")])
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    delay: threading.Event | None = None


@contextmanager
def http_peer(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[HttpPeer]:
    peer = HttpPeer(answers=list(answers) or [(200, {}, b"")])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            peer.asked.append(Asked(self.path, dict(self.headers), body))
            if peer.delay is not None:
                peer.delay.wait(10)
            status, headers, answer = peer.answers.pop(0) if len(peer.answers) > 1 else peer.answers[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    peer.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
