"""Who is answered: a token for each start, known hosts, one origin, bounded requests.

The page shows private photographs and lets a model compute. Everything that other pages in the same
browser, other users of the machine or a network could send is refused here, before any of it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UPLOAD = 32 * 2**20  # bytes of a photograph
MAX_BODY = 64 * 2**10  # of anything else
BODY_SECONDS = 20.0  # for a body to arrive
REQUEST_SECONDS = 300.0  # for all of a request, so that a client that does not read ends

TOKEN_HEADER = "x-camkit-token"
OWN_SITE = (None, "none", "same-origin")  # what a browser says of a request from here, or typed in

# Sent with every answer. Nothing is loaded from elsewhere, framed, or kept.
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Policy:
    """Who may ask.

    port: where the server listens. hosts: the names that it may be asked by, in lower case. addresses:
    whether any IP address will do, too; a page of elsewhere can only ask by a name (DNS rebinding).
    token: what every request has to know. tickets: tokens that open the page once, for a command line that
    other users of the machine can see.
    """

    port: int
    hosts: frozenset[str] = frozenset({"127.0.0.1", "localhost", "::1"})
    addresses: bool = False
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    tickets: set[str] = field(default_factory=set, repr=False)

    @property
    def cookie(self) -> str:
        """The name of the cookie; browsers share cookies between the ports of a host."""
        return f"camkit-{self.port}"

    def ticket(self) -> str:
        """A new token that opens the page once."""
        self.tickets.add(made := secrets.token_urlsafe(32))
        return made


@dataclass(frozen=True)
class Asked:
    """What decides about a request."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Headers

    @classmethod
    def of(cls, scope: Scope) -> Asked:
        """Of an ASGI scope."""
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
        return cls(scope["method"], scope["path"], query, Headers(scope=scope))

    @property
    def from_address(self) -> str:
        """The token in the address, which only the page itself takes."""
        return self.query.get("token", [""])[0] if self.path == "/" else ""

    @property
    def length(self) -> int | None:
        """The length of the body, as far as it is said."""
        said = self.headers.get("content-length")
        return int(said) if said is not None and said.isascii() and said.isdigit() else None


Refusal = tuple[int, str]
Check = Callable[[Policy, Asked], bool]


def known_host(policy: Policy, asked: Asked) -> bool:
    """Whether the request is for a name of ours; elsewhere a name may lead to this machine, too."""
    name, port = _host(asked.headers.get("host", ""))
    return port == policy.port and (name in policy.hosts or (policy.addresses and _is_address(name)))


def own_site(policy: Policy, asked: Asked) -> bool:
    """Whether no page of elsewhere, such as of another port, makes the browser ask.

    A link with the token may stand anywhere, such as in a terminal that is a page itself.
    """
    return bool(asked.from_address) or asked.headers.get("sec-fetch-site") in OWN_SITE


def own_origin(policy: Policy, asked: Asked) -> bool:
    """Whether what changes something comes from the page itself."""
    if asked.method in ("GET", "HEAD"):
        return True
    return asked.headers.get("origin") == f"http://{asked.headers.get('host')}"


def holds_token(policy: Policy, asked: Asked) -> bool:
    """Whether the request knows the token: in the cookie, a header, or the address of the page."""
    if any(hmac.compare_digest(ticket, _ascii(asked.from_address)) for ticket in policy.tickets):
        return True
    shown = (_cookie(asked, policy.cookie), asked.headers.get(TOKEN_HEADER, ""), asked.from_address)
    return any(hmac.compare_digest(policy.token, _ascii(one)) for one in shown)


def short_enough(policy: Policy, asked: Asked) -> bool:
    """Whether the body is as long as it may be, as far as that is said."""
    return (asked.length or 0) <= limit(asked.path)


# In this order: the first that fails is the answer.
CHECKS: tuple[tuple[Check, int, str], ...] = (
    (known_host, 403, "This address is not the explorer's: use the one that `camkit explore` printed."),
    (own_site, 403, "Another page may not ask the explorer."),
    (holds_token, 401, "The token is missing: open the address that `camkit explore` printed."),
    (own_origin, 403, "Only the explorer's own page may ask this."),
    (short_enough, 413, "That is too large."),
)


def refusal(policy: Policy, asked: Asked) -> Refusal | None:
    """Why a request is refused, or `None`."""
    return next(((code, text) for check, code, text in CHECKS if not check(policy, asked)), None)


def limit(path: str) -> int:
    """Bytes that a body may have."""
    return MAX_UPLOAD if path == "/api/photographs" else MAX_BODY


class Guard:
    """An ASGI application behind a `Policy`: it sees complete, bounded requests of those who may ask."""

    def __init__(self, app: ASGIApp, policy: Policy, *, body_seconds: float = BODY_SECONDS) -> None:
        self._app, self._policy, self._body_seconds = app, policy, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse; web sockets are closed unanswered."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        asked = Asked.of(scope)
        send = self._with_headers(asked, send)
        refused = refusal(self._policy, asked)
        body = b""
        if refused is None:
            try:
                body = await asyncio.wait_for(_body(receive, limit(asked.path)), self._body_seconds)
            except _TooLong:
                refused = 413, "That is too large."
            except TimeoutError:
                refused = 408, "The request took too long to arrive."
            except _Gone:
                return
        if refused is not None:
            await PlainTextResponse(refused[1] + "\n", refused[0])(scope, receive, send)
            return
        self._policy.tickets.discard(asked.from_address)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._app(scope, _replayed(body, receive), send)
        except TimeoutError:
            return  # the client does not read its answer; uvicorn closes the connection

    def _with_headers(self, asked: Asked, send: Send) -> Send:
        """`send` with the headers of every answer, and the cookie for a page opened with a token."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if asked.from_address and message["status"] == 200:
                    headers.append("Set-Cookie", _set_cookie(self._policy))
            await send(message)

        return sending


class _TooLong(Exception):
    """More bytes than a body may have."""


class _Gone(Exception):
    """The client went away before its request was there."""


async def _body(receive: Receive, most: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise _TooLong
        if not message.get("more_body", False):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for an application that has not seen the body yet."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _host(text: str) -> tuple[str, int]:
    """Name and port of a `Host` header; port 0 if it is none."""
    name, _, port = text.rpartition(":")
    if not name or not (port.isascii() and port.isdigit() and len(port) < 6):
        return "", 0
    return name.removeprefix("[").removesuffix("]").lower(), int(port)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(asked: Asked, name: str) -> str:
    try:
        found = SimpleCookie(asked.headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _ascii(text: str) -> str:
    """A text that `compare_digest` takes; no token has other characters."""
    return text if text.isascii() else ""


def _set_cookie(policy: Policy) -> str:
    # Without an end: it goes with the browser, as the token goes with the server.
    answer = Response()
    answer.set_cookie(policy.cookie, policy.token, httponly=True, samesite="strict", path="/")
    return answer.headers["set-cookie"]
