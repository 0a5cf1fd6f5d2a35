"""Pages of a plugin cost nothing until somebody looks at them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI


class LazyApplication:
    """An ASGI application that is built with its first request: every process of Airflow loads every plugin.

    Args:
        build: makes the application; its imports belong inside.
    """

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._build = build
        self._application: FastAPI | None = None

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if self._application is None:
            self._application = self._build()
        await self._application(scope, receive, send)
