"""Who is answered, and that nothing a stranger sends ends the answering."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import string
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import camkit_explorer.server
import httpx2
import pytest
from camkit_explorer.security import HEADERS, MAX_BODY, MAX_UPLOAD, Guard, Policy
from camkit_explorer.session import Session
from click.testing import CliRunner
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

OWN = {"host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}


@pytest.fixture
def stranger(app: Guard) -> TestClient:
    """Somebody who knows the address alone."""
    return TestClient(app, base_url="http://127.0.0.1:80", headers=OWN, follow_redirects=False)


@pytest.fixture
def owner(app: Guard, policy: Policy) -> TestClient:
    """Who holds the token."""
    headers = {**OWN, "x-camkit-token": policy.token}
    return TestClient(app, base_url="http://127.0.0.1:80", headers=headers, follow_redirects=False)


ADDRESSES = (
    "/ /static/explorer.js /static/explorer.css /static/icon.svg /api/session "
    "/api/models/0/photographs/0/picture /api/photographs/0/thumbnail /api/backends/native /api/maps "
    "/nothing /api/../ "
    "/%2e%2e/%2e%2e/etc/passwd"
).split()


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("token", [None, "", "wrong", "é", "x" * 5000])
def test_without_the_token_every_address_is_refused(
    stranger: TestClient, address: str, token: str | None
) -> None:
    ways: list[dict[str, Any]] = [{}]
    if token is not None:
        encoded = token.encode()
        ways = [{"params": {"token": token}}, {"headers": {"x-camkit-token": encoded}}]
        ways += [{"headers": {"cookie": b"camkit-80=" + encoded}}]
    for way in ways:
        for method in ("GET", "POST", "PUT", "OPTIONS"):
            answer = stranger.request(method, address, **way)
            assert answer.status_code == 401, (method, way)
            assert "set-cookie" not in answer.headers and "location" not in answer.headers


def test_the_token_becomes_a_cookie_that_no_script_and_no_other_site_gets(
    app: Guard, policy: Policy
) -> None:
    browser = TestClient(app, base_url="http://127.0.0.1:80", headers=OWN)
    page = browser.get("/", params={"token": policy.token})
    assert page.status_code == 200 and policy.token not in page.text
    said = page.headers["set-cookie"].lower()
    assert said.startswith("camkit-80=") and "httponly" in said and "samesite=strict" in said
    assert "expires" not in said and "max-age" not in said
    assert browser.get("/api/session").status_code == 200
    # An address with the token is for the page alone.
    assert TestClient(app, headers=OWN).get(f"/api/session?token={policy.token}").status_code == 401


def test_a_ticket_opens_the_page_once(app: Guard, policy: Policy) -> None:
    ticket = policy.ticket()
    first = TestClient(app, base_url="http://127.0.0.1:80", headers=OWN)
    assert first.get("/", params={"token": ticket}).status_code == 200
    assert first.get("/api/session").status_code == 200
    second = TestClient(app, base_url="http://127.0.0.1:80", headers=OWN)
    assert second.get("/", params={"token": ticket}).status_code == 401
    assert second.get("/", params={"token": policy.token}).status_code == 200


@pytest.mark.parametrize(
    "host",
    "evil.example evil.example:80 127.0.0.1 127.0.0.1:81 127.0.0.1.evil.example:80 localhost:x [::1]x:80 "
    "10.0.0.1:80 0.0.0.0:80 @127.0.0.1:80 127.0.0.1:80@evil:80".split(),
)
def test_a_name_that_leads_here_from_elsewhere_is_refused(owner: TestClient, host: str) -> None:
    for address in ("/", "/api/session"):
        assert owner.get(address, headers={"host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost:80", "LocalHost:80", "[::1]:80"])
def test_the_names_of_this_machine_are_taken(owner: TestClient, host: str) -> None:
    assert owner.get("/api/session", headers={"host": host}).status_code == 200


def test_another_machine_may_be_asked_by_address_where_that_was_allowed(session: Session) -> None:
    from camkit_explorer.app import create_app

    policy = Policy(80, Policy(80).hosts | {"studio"}, addresses=True)
    client = TestClient(create_app(session, policy), headers={"x-camkit-token": policy.token})
    found = {host: client.get("/api/session", headers={"host": host}).status_code for host in (
        "studio:80", "192.168.1.5:80", "[fe80::1]:80", "evil.example:80"
    )}  # fmt: skip
    assert list(found.values()) == [200, 200, 200, 403]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:81"},
        {"origin": "https://127.0.0.1:80"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_page_may_not_change_anything(owner: TestClient, headers: dict[str, str]) -> None:
    assert owner.post("/api/model", json={}, headers=headers).status_code == 403


def test_what_says_no_origin_may_only_read(app: Guard, policy: Policy) -> None:
    client = TestClient(app, base_url="http://127.0.0.1:80", headers={"x-camkit-token": policy.token})
    client.headers["host"] = "127.0.0.1:80"
    assert client.get("/api/session").status_code == 200
    assert client.post("/api/model", json={}).status_code == 403


def test_every_answer_has_the_headers(owner: TestClient, stranger: TestClient) -> None:
    for answer in (owner.get("/"), owner.get("/nothing"), stranger.get("/"), owner.post("/api/maps")):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (answer.status_code, name)
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "*" not in policy


def test_the_page_asks_nobody_else_and_has_no_script_inside(owner: TestClient) -> None:
    page = owner.get("/").text
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == [] and " style=" not in page
    assert re.findall(r"\son\w+=", page) == []
    for name in re.findall(r"/static/[\w.]+", page):
        assert owner.get(name).status_code == 200
    texts = [page, *(owner.get(f"/static/{name}.{kind}").text for name, kind in (
        ("explorer", "js"), ("drawing", "js"), ("saving", "js"), ("explorer", "css")
    ))]  # fmt: skip
    links = {link for text in texts for link in re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)}
    assert links == {"http://www.w3.org/2000/svg"}, "the name of a language, which nobody fetches"
    assert all("innerHTML" not in text and "eval(" not in text for text in texts)


def test_no_address_leads_to_a_file(owner: TestClient) -> None:
    for address in (
        "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
        "/static/",
        "/static/explorer.js/", "/api/models/0/photographs/-1/picture",
        "/api/models/1e3/photographs/0/picture",
        "/api/models/0/photographs/..%2f..%2fetc%2fpasswd/picture",
        "/api/models/0/photographs/0/picture/../../../session/",
        "/api/session/", "//api/session", "/API/SESSION", "/api/models/0/photographs/0x0/picture",
    ):  # fmt: skip
        answer = owner.get(address)
        assert answer.status_code in (404, 405) or answer.json() is not None, address
        assert not 300 <= answer.status_code < 400 and "root:" not in answer.text
    assert owner.get("/api/models/0/photographs/99/picture").status_code == 422
    assert owner.get("/api/models/0/photographs/9999999999999999999999/picture").status_code == 422


# --- bodies ---------------------------------------------------------------------------------------


def test_bodies_have_limits(owner: TestClient) -> None:
    assert owner.post("/api/maps", content=b"x" * (MAX_BODY + 1)).status_code == 413
    assert owner.post("/api/photographs", content=b"x" * (MAX_UPLOAD + 1)).status_code == 413
    said = {"content-length": "99999999999999999999999999"}
    assert owner.post("/api/maps", content=b"{}", headers=said).status_code == 413
    assert owner.post("/api/maps", content=iter([b"x" * 2**16] * 3)).status_code == 413
    assert owner.post("/api/model", content=b"{}").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(policy: Policy) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it sees complete requests only")

    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in OWN.items()]
    headers.append((b"x-camkit-token", policy.token.encode()))
    scope = {"type": "http", "method": "POST", "path": "/api/maps", "query_string": b"", "headers": headers}
    asyncio.run(Guard(app, policy, body_seconds=0.05)(scope, receive, send))
    assert sent[0]["status"] == 408


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"GIF89a", "cannot be decoded|not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%PDF-1.7", "not an image"),
        (bomb(), "is too large"),
    ],
)
def test_what_is_no_photograph_is_refused_and_leaves_no_trace(
    owner: TestClient, data: bytes, why: str
) -> None:
    before = len(owner.get("/api/session").json()["photographs"])
    answer = owner.post("/api/photographs", content=data, headers={"x-name": "../../%00evil%0A.png"})
    assert answer.status_code == 422 and re.search(why, answer.json()["error"]), answer.text
    assert answer.json()["error"].startswith("\\x00evil\\n.png: ")
    assert len(owner.get("/api/session").json()["photographs"]) == before


def test_photographs_of_the_page_are_forgotten_when_they_are_too_many(
    owner: TestClient, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camkit_explorer.session.MAX_DROPPED", 2)
    numbers = [
        owner.post("/api/photographs", content=png(colour=colour)).json()["number"]
        for colour in ("red", "green", "blue")
    ]
    found = [owner.get(f"/api/models/0/photographs/{number}/picture").status_code for number in numbers]
    assert found == [422, 200, 200]
    assert "drop it again" in owner.get(f"/api/models/0/photographs/{numbers[0]}/picture").json()["error"]
    monkeypatch.setattr("camkit_explorer.session.MAX_DROPPED_BYTES", 10)
    last = owner.post("/api/photographs", content=png()).json()["number"]
    assert owner.get(f"/api/models/0/photographs/{last}/picture").status_code == 422


HOSTILE = [
    b"", b"nothing", b"[]", b"{", b"[" * 5000, b'{"model": 1e999}', b'{"model": NaN}', b'{"model": -1}',
    b'{"model": true}', b'{"model": "0"}', b'{"model": 99}', b'{"photograph": 99}', b'{"photograph": 1.5}',
    b'{"layer": "../high"}', b'{"layer": "*"}', b'{"layer": ""}', b'{"method": "nothing"}',
    b'{"backend": "os:system"}', b'{"classes": []}', b'{"classes": [99]}', b'{"classes": 3}',
    b'{"target": 99}', b'{"mask": "AAAA"}', b'{"mask": 7}', b'{"fill": "nothing"}',
    b'{"path": "/etc/passwd"}',
    b'{"opacity": 2}', b'{"rectified": 1}', b"\xff\xfe", b'{"layer": "\\ud800"}',
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:30]))
def test_questions_that_are_none_get_one_line(owner: TestClient, body: bytes) -> None:
    answer = owner.post("/api/cover", content=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error and "\n" not in error and "Traceback" not in error and "unexpected" not in error


# --- a real server --------------------------------------------------------------------------------

Serve = Callable[..., AbstractContextManager[str]]


def test_a_hundred_hostile_requests_leave_it_answering(
    serve: Serve, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camkit_explorer.server, "HEAD_SECONDS", 0.5)
    draw = random.Random(0)
    with serve(session) as address:
        place = urlsplit(address)
        token = place.query.removeprefix("token=")
        host = f"127.0.0.1:{place.port}"
        head = f"Host: {host}\r\nOrigin: http://{host}\r\nX-Camkit-Token: {token}\r\n"
        noise = "".join(draw.choices(string.ascii_letters, k=70_000))
        requests = [
            "GET /../../../../etc/passwd HTTP/1.1\r\n" + head + "\r\n",
            "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "GET /api/session HTTP/1.1\r\nHost: evil.example\r\nX-Camkit-Token: " + token + "\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
            "TRACE / HTTP/1.1\r\n" + head + "\r\n",
            "GET /" + noise + " HTTP/1.1\r\n" + head + "\r\n",
            "GET / HTTP/1.1\r\n" + "".join(f"X-{n}: {noise[:900]}\r\n" for n in range(99)) + "\r\n",
            "POST /api/maps HTTP/1.1\r\n" + head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
            "POST /api/maps HTTP/1.1\r\n" + head + "Transfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
            "POST /api/photographs HTTP/1.1\r\n" + head + "Content-Length: 99999999999\r\n\r\nx",
            "POST /api/photographs HTTP/1.1\r\n" + head + "Content-Length: 50\r\n\r\nx",
            "GET / HTTP/1.1\r\n" + head + "Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "GET /api/ses",  # and not another byte
            "",
            "POST /api/cover HTTP/1.1\r\n" + head + "Content-Length: 2\r\n\r\n[]",
            "GET /?token=" + noise[:60] + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
            "GET /api/session HTTP/1.1\r\nHost: " + host + "\r\nCookie: " + noise[:9000] + "\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
        held = []
        for count in range(100):
            talk = socket.create_connection(("127.0.0.1", place.port or 0), timeout=5)
            talk.sendall(requests[count % len(requests)].encode("latin-1"))
            held.append(talk)  # nobody reads, and nobody hangs up
        with httpx2.Client(timeout=10) as client:
            begun = time.monotonic()
            assert client.get(address).status_code == 200
            assert client.get(f"http://{host}/api/session").json()["models"]
            assert time.monotonic() - begun < 5
        time.sleep(0.8)  # the patience with a head
        slow = held[14]
        assert slow.recv(1000) == b"", "who does not finish a head is hung up on"
        answers = {held[n].recv(20)[9:12] for n in (0, 1, 2, 3, 10, 16, 17)}
        assert answers <= {b"400", b"401", b"403", b"404", b"413", b"422"}
        for talk in held:
            talk.close()


def test_a_head_that_drips_is_cut_off_and_a_quiet_connection_may_ask_again(
    serve: Serve, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camkit_explorer.server, "HEAD_SECONDS", 0.6)
    with serve(session) as address:
        place = urlsplit(address)
        with socket.create_connection(("127.0.0.1", place.port or 0), timeout=5) as talk:
            begun = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - begun < 5:
                    talk.sendall(b"G")
                    time.sleep(0.1)
            assert time.monotonic() - begun < 3
        with httpx2.Client() as client:
            for _ in range(3):
                assert client.get(address).status_code == 200


def test_the_command_refuses_a_network_without_being_told() -> None:
    from camkit.cli import cli

    def said(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["explore", "--no-open", *words])
        return done.exit_code, done.stderr

    for host in ("0.0.0.0", "192.168.1.5", "example.org", "::"):
        code, text = said("--host", host)
        assert code == 2 and f"--host {host} lets others" in text and "--i-know" in text
    code, text = said("--classes", "cat,dog")
    assert code == 2 and "--classes is for a --model" in text
    code, text = said("--model", "pets", "--classes", "cat,dog")
    assert code == 2 and "camkit model bundle pets --classes ... --out DIR" in text
    code, text = said("nothing.jpg")
    assert code == 2 and "there is no image 'nothing.jpg'" in text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, text = said("--port", str(taken.getsockname()[1]))
    assert code == 2 and "cannot listen at 127.0.0.1 port" in text


def test_json_stays_json_whatever_the_name(owner: TestClient, png: Callable[..., bytes]) -> None:
    for name in ("%F0%9F%90%88.png", "%ff%fe.png", "a" * 900 + ".png", "..%5C..%5Cx.png", ""):
        made = owner.post("/api/photographs", content=png(), headers={"x-name": name})
        shown = made.json()["name"]
        assert made.status_code == 200 and len(shown) <= 120 and "/" not in shown and "\\" not in shown
    assert json.loads(owner.get("/api/session").content)["photographs"]
