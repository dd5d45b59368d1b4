"""Listening: one socket, no logs, and no patience with those who do not finish their sentence."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from camkit.errors import CamkitError, UsageError, reason

HEAD_SECONDS = 10.0  # for the head of a request to arrive


class Impatient(H11Protocol):
    """Ends a connection whose next request does not begin, or whose head does not end, in `HEAD_SECONDS`.

    uvicorn limits only the silence between two requests.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count from here."""
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        """Count anew for the next request."""
        super().on_response_complete()
        self._deadline.cancel()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count no more."""
        self._deadline.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.abort()


class Announcing(uvicorn.Server):
    """Calls a function when it listens."""

    def __init__(self, config: uvicorn.Config, begun: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._begun()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises `UsageError` where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let others take the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot listen at {host} port {port}: {reason(error)}") from None
    bound.listen(64)
    return bound


def serving(app: ASGIApp, begun: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """A server for `run(sockets=[...])`; begun: is called when it listens."""
    options: dict[str, Any] = {"lifespan": "off", "ws": "none", "log_config": None, "access_log": False}
    options |= {"http": Impatient, "server_header": False, "timeout_graceful_shutdown": 2}
    return Announcing(uvicorn.Config(app, **options), begun)


def has_display() -> bool:
    """Whether a browser can show itself, and would not take over the terminal."""
    if not sys.platform.startswith("linux"):
        return True
    return any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"))


def open_browser(address: str) -> None:
    """Open the browser without waiting for it."""
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def address_of(bound: socket.socket, host: str) -> str:
    """`http://HOST:PORT` of a socket, as a browser writes it."""
    port = bound.getsockname()[1]
    try:
        unspecified = ipaddress.ip_address(host).is_unspecified
        shown = f"[{host}]" if ":" in host else host
    except ValueError:
        unspecified, shown = False, host
    if unspecified:  # every address of this machine
        shown = socket.gethostname()
    if not shown:
        raise CamkitError("this machine has no name: give --host an address")
    return f"http://{shown}:{port}"
