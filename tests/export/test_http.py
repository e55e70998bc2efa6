from __future__ import annotations

import errno
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection, HTTPResponse

import pytest

from sidecar.clock import ManualClock
from sidecar.config import Config
from sidecar.export.http import HttpOutcome, MetricsServer
from sidecar.export.http_head import MAX_HEAD_BYTES, BadHead, parse_head
from sidecar.export.metrics import MetricsCollector
from sidecar.log import Log
from tests.export.examples import signal, snapshot
from tests.waiting import until

DEADLINE_S = 10.0
PAGE = b"# EOF\n"

Serve = Callable[..., MetricsServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(
            render: Callable[[str], tuple[bytes, str]] = lambda _: (PAGE, "text/plain"),
            *,
            max_connections: int = 4,
            header_timeout_s: float = 5.0,
            ready: Callable[[], bool] | None = None,
            log: Log | None = None,
        ) -> MetricsServer:
            server = MetricsServer(
                "127.0.0.1",
                0,
                render,
                max_connections=max_connections,
                header_timeout_s=header_timeout_s,
                ready=ready,
                log=log,
            )
            server.start()
            stack.callback(server.stop)
            return server

        yield start


def request(server: MetricsServer, method: str, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()


def raw(server: MetricsServer, sent: bytes) -> bytes:
    """Everything that the server answers to these bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
        connection.sendall(sent)
        return receive_all(connection)


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def test_a_scrape_gets_the_page_in_the_format_that_it_prefers(serve: Serve) -> None:
    server = serve(MetricsCollector(snapshot, version="0.1.0").render)
    response, body = request(server, "GET", "/metrics")
    assert (response.status, response.getheader("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"stethoscope_blind" in body
    response, body = request(server, "GET", "/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert response.getheader("Content-Type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert body.endswith(b"# EOF\n")
    protobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    response, body = request(server, "GET", "/metrics", Accept=protobuf)
    assert response.getheader("Content-Type") == protobuf
    assert b"\x0a\x11stethoscope_blind" in body


def test_the_default_address_is_loopback_and_only_loopback_listens(serve: Serve) -> None:
    assert Config().metrics.host == "127.0.0.1"
    server = serve()
    with socket.socket() as elsewhere:  # the same port of another loopback address: 0.0.0.0 would answer there
        elsewhere.settimeout(DEADLINE_S)
        assert elsewhere.connect_ex(("127.0.0.2", server.port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW", "get"])
def test_only_get_is_allowed(serve: Serve, method: str) -> None:
    server = serve()
    response, _ = request(server, method, "/metrics")
    assert (response.status, response.getheader("Allow")) == (405, "GET")


def test_a_refused_upload_still_gets_its_answer(serve: Serve) -> None:
    body = b"x" * 60_000
    answer = raw(serve(), b"POST /metrics HTTP/1.1\r\nContent-Length: 60000\r\n\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/../etc/passwd", "/favicon.ico", "/METRICS", "//metrics"])
def test_any_other_path_is_not_found(serve: Serve, path: str) -> None:
    assert request(serve(), "GET", path)[0].status == 404


def test_a_query_does_not_change_the_page(serve: Serve) -> None:
    assert request(serve(), "GET", "/metrics?name[]=x")[1] == PAGE


def test_health_is_alive_and_readiness_is_what_the_service_says(serve: Serve) -> None:
    ready = threading.Event()
    server = serve(ready=ready.is_set)
    assert request(server, "GET", "/healthz")[0].status == 200
    assert request(server, "GET", "/readyz")[0].status == 503
    ready.set()
    assert request(server, "GET", "/readyz")[0].status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET http://evil/metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nAccept : x\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"A: b\r\n" * 20_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
    ],
)
def test_a_bad_head_is_refused_and_the_next_scrape_served(serve: Serve, head: bytes, status: int) -> None:
    server = serve()
    assert raw(server, head).startswith(f"HTTP/1.1 {status} ".encode())
    assert request(server, "GET", "/metrics")[1] == PAGE
    until(lambda: server.counts()[HttpOutcome.BAD_REQUEST] == 1)


def test_an_answer_never_quotes_the_request(serve: Serve) -> None:
    answer = raw(serve(), b"GET /<script>secret</script> HTTP/1.1\r\nX: secret\r\n\r\n")
    assert b"secret" not in answer
    assert b"nosniff" in answer


def test_a_head_cannot_be_kept_open_by_a_byte_now_and_then(serve: Serve) -> None:
    server = serve(header_timeout_s=0.4)
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\n")
        connection.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() < started_s + DEADLINE_S:
            connection.sendall(b"X")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.4 <= time.monotonic() - started_s < 3.0
    until(lambda: server.counts()[HttpOutcome.TIMED_OUT] == 1)


def test_connections_beyond_the_bound_are_refused_at_once_and_counted_and_the_place_comes_back(serve: Serve) -> None:
    server = serve(max_connections=3, header_timeout_s=DEADLINE_S)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), DEADLINE_S))
        for refused in range(1, 4):
            with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as extra:
                assert receive_all(extra).startswith(b"HTTP/1.1 503 ")
            until(lambda n=refused: server.counts()[HttpOutcome.REFUSED] == n)  # type: ignore[misc]
        assert sum(thread.name == "metrics-http" for thread in threading.enumerate()) == 3
    until(lambda: server.counts()[HttpOutcome.ABORTED] == 3)
    assert request(server, "GET", "/metrics")[1] == PAGE


def test_a_client_that_never_reads_is_cut_off_and_holds_nobody_up(serve: Serve) -> None:
    page = b"x" * (32 << 20)  # more than the kernel buffers of both sides take
    server = serve(lambda _: (page, "text/plain"), header_timeout_s=0.5)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", server.port))
        lazy.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert request(server, "GET", "/healthz")[0].status == 200
        until(lambda: server.counts()[HttpOutcome.ABORTED] == 1)


def test_a_scrape_under_a_flood_of_scrapes_takes_less_than_a_second(serve: Serve) -> None:
    large = snapshot(signals=tuple(signal(f"probe_{n:02}") for n in range(64)))
    server = serve(MetricsCollector(lambda: large, version="0.1.0").render, max_connections=16)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as connection:
                connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                connection.recv(100)

    flooders = [threading.Thread(target=flood, daemon=True) for _ in range(12)]
    for flooder in flooders:
        flooder.start()
    took_s = []
    for _ in range(5):
        started_s = time.monotonic()
        assert request(server, "GET", "/metrics")[0].status == 200
        took_s.append(time.monotonic() - started_s)
    stop.set()
    for flooder in flooders:
        flooder.join(DEADLINE_S)
    assert sorted(took_s)[2] < 1.0


@pytest.mark.parametrize("bug", [RuntimeError, TimeoutError, ConnectionResetError, BadHead])
def test_a_render_that_raises_is_a_500_without_its_text_and_the_next_scrape_is_served(
    serve: Serve, bug: type[Exception]
) -> None:
    lines: list[str] = []
    broken = threading.Event()
    broken.set()

    def render(_: str) -> tuple[bytes, str]:
        if broken.is_set():
            raise bug("/etc/secret not found")
        return PAGE, "text/plain"

    server = serve(render, log=Log(ManualClock(), write=lines.append))
    response, body = request(server, "GET", "/metrics")
    assert (response.status, body) == (500, b"500 Internal Server Error\n")
    assert ['"scrape_failed"' in line and "secret" not in line for line in lines] == [True]
    broken.clear()
    assert request(server, "GET", "/metrics")[1] == PAGE
    until(lambda: server.counts()[HttpOutcome.ANSWERED] == 1)
    assert server.counts()[HttpOutcome.FAILED] == 1


def test_a_port_in_use_is_an_error_at_start_that_names_it(serve: Serve) -> None:
    first = serve()
    second = MetricsServer("127.0.0.1", first.port, lambda _: (PAGE, ""), max_connections=1, header_timeout_s=1.0)
    with pytest.raises(OSError, match=rf"cannot listen for scrapes on 127\.0\.0\.1 port {first.port}: ") as refused:
        second.start()
    assert refused.value.errno == errno.EADDRINUSE
    second.stop()
    assert request(first, "GET", "/metrics")[1] == PAGE


def test_stop_closes_open_connections_and_the_address_and_can_be_repeated(serve: Serve) -> None:
    others = set(threading.enumerate())
    server = serve(header_timeout_s=60.0)
    port = server.port

    def ours() -> set[str]:
        return {thread.name for thread in set(threading.enumerate()) - others}

    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as idle:
        idle.sendall(b"GET ")
        until(lambda: "metrics-http" in ours())
        started_s = time.monotonic()
        server.stop()
        assert time.monotonic() - started_s < 2.0
        assert receive_all(idle) == b""
    server.stop()
    assert not {"metrics-http", "metrics-accept"} & ours()
    with socket.socket() as late:
        assert late.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_a_stopped_server_starts_again_on_the_same_port(serve: Serve) -> None:
    server = serve()
    port = server.port
    request(server, "GET", "/metrics")
    server.stop()
    again = MetricsServer("127.0.0.1", port, lambda _: (PAGE, ""), max_connections=1, header_timeout_s=1.0)
    again.start()
    assert again.port == port
    again.stop()


def test_the_loopback_of_ipv6_works_or_is_named_in_the_error() -> None:
    server = MetricsServer("::1", 0, lambda _: (PAGE, "text/plain"), max_connections=1, header_timeout_s=1.0)
    try:
        server.start()
    except OSError as error:
        assert "::1 port 0" in str(error)  # noqa: PT017 - a machine without IPv6 is no failure
        return
    with closing(HTTPConnection("::1", server.port, timeout=DEADLINE_S)) as connection:
        connection.request("GET", "/metrics")
        assert connection.getresponse().read() == PAGE
    server.stop()


def test_without_file_descriptors_the_server_waits_and_then_serves(serve: Serve) -> None:
    server = serve()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        client.settimeout(DEADLINE_S)
        taken: list[socket.socket] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, soft), hard))
        try:
            with suppress(OSError):
                while True:
                    taken.append(socket.socket())
            client.connect(("127.0.0.1", server.port))  # the kernel completes it; the server cannot accept it
            until(lambda: server.counts()[HttpOutcome.ABORTED] >= 2)
            tried, started_s = server.counts()[HttpOutcome.ABORTED], time.monotonic()
            until(lambda: server.counts()[HttpOutcome.ABORTED] >= tried + 4)
            assert time.monotonic() - started_s > 0.1  # pauses between attempts, and no busy loop
        finally:
            for held in taken:
                held.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert receive_all(client).endswith(PAGE)


def test_the_port_is_not_known_before_the_start() -> None:
    server = MetricsServer("127.0.0.1", 0, lambda _: (PAGE, ""), max_connections=1, header_timeout_s=1.0)
    with pytest.raises(RuntimeError, match="not started"):
        _ = server.port


def test_header_names_are_compared_in_lower_case_and_the_last_of_two_counts() -> None:
    assert parse_head(b"GET /x HTTP/1.0\r\nACCEPT: a\r\naccept:b ").headers == {"accept": "b"}


def test_bytes_that_are_not_ascii_do_not_break_the_parser() -> None:
    with pytest.raises(BadHead):
        parse_head(bytes(range(256)))
