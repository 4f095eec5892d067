"""What operators ask over HTTP: alive, ready, metrics, and the state of one user.

Loopback by default and then open. A bind elsewhere without a token is refused, and with one all but /healthz asks
for it, because the state of users is behind it.
"""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from stream.errors import ConfigurationError, PortTaken
from stream.settings import Http


class Health:
    """The worker's HTTP server.

    Args:
        ready: None when ready, else the reason in words.
        metrics: the text of /metrics.
        state: the row of a user, or None; ``stats`` of all rows.
    """

    def __init__(
        self,
        http: Http,
        *,
        ready: Callable[[], str | None],
        metrics: Callable[[], bytes],
        state: Callable[[str], dict[str, Any] | None],
        stats: Callable[[], dict[str, Any]],
    ):
        if not _is_loopback(http.host) and http.token is None:
            raise ConfigurationError(
                f"FORECLICK_HTTP__HOST is {http.host}, which others can reach, and no token is set. Set "
                "FORECLICK_HTTP__TOKEN_FILE, or bind 127.0.0.1."
            )
        self._http = http
        self._ready, self._metrics, self._state, self._stats = ready, metrics, state, stats
        self._runner: web.AppRunner | None = None
        self.port = http.port

    async def start(self) -> None:
        """Listen.

        Raises:
            PortTaken: another process has the port.
        """
        app = web.Application(middlewares=[self._authorised])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics_page)
        app.router.add_get("/state", self._stats_page)
        app.router.add_get("/state/{user:.+}", self._state_page)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._http.host, self._http.port).start()
        except OSError as error:
            raise PortTaken(
                f"Port {self._http.port} on {self._http.host} is taken ({error.strerror}). Stop what listens there, or "
                "set FORECLICK_HTTP__PORT (0 takes a free one)."
            ) from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        token = self._http.token
        if token is not None and request.path != "/healthz":
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            # Bytes, since header values may be anything, and all of them, so that the time tells nothing.
            matches = hmac.compare_digest(
                given.strip().encode("utf-8", "surrogateescape"), token.get_secret_value().encode()
            )
            if not matches or scheme.lower() != "bearer":
                return web.json_response({"error": "a bearer token is needed"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._ready()
        return web.json_response(
            {"ready": reason is None, "reason": reason}, status=200 if reason is None else 503
        )

    async def _metrics_page(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _stats_page(self, _: web.Request) -> web.Response:
        return web.json_response(self._stats())

    async def _state_page(self, request: web.Request) -> web.Response:
        user = request.match_info["user"]
        row = self._state(user)
        if row is None:
            return web.json_response(
                {"error": f"no row of user {user} in this worker's partitions"}, status=404
            )
        return web.json_response(row)


def readiness(
    states: dict[int, str],
    *,
    lag_records: int,
    last_commit_s: float | None,
    max_age_s: float,
    unanswered_s: float = 0.0,
    now_s: float | None = None,
) -> str | None:
    """Why a worker is not ready, or None.

    Args:
        states: of its partitions.
        lag_records: waiting, as far as the broker has told.
        last_commit_s, now_s: on the monotonic clock.
        max_age_s: of the last commit while records wait, and of the brokers' last answer.
        unanswered_s: since a broker has answered: of one that is away no lag is known.
    """
    if unanswered_s > max_age_s:
        return f"broker away: no answer for {unanswered_s:.0f} s"
    if not states:
        return "no partitions: the group has given none to this worker yet"
    waiting = {number: state for number, state in states.items() if state != "open"}
    if waiting:
        number, state = next(iter(waiting.items()))
        return f"recovering: {len(waiting)} of {len(states)} partitions are not open (partition {number} is {state})"
    now_s = time.monotonic() if now_s is None else now_s
    if lag_records and last_commit_s is not None and now_s - last_commit_s > max_age_s:
        return f"commit too old: {now_s - last_commit_s:.0f} s ago, with {lag_records} records waiting"
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
