"""HTTP for people, Prometheus and Kubernetes probes. It asks for no token and shows no secret."""

from collections.abc import Callable
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from p2p.errors import P2PError
from p2p.units import format_address


def application(
    status: Callable[[], dict[str, Any]], ready: Callable[[], bool], collector: Collector
) -> Starlette:
    """`/healthz`, `/readyz` (503 until `ready`), `/status` (JSON) and `/metrics`."""
    registry = CollectorRegistry()
    registry.register(collector)

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readiness(_request: Request) -> Response:
        good = ready()
        return PlainTextResponse("ready\n" if good else "not ready\n", 200 if good else 503)

    async def show(_request: Request) -> Response:
        return JSONResponse(status())

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/readyz", readiness),
            Route("/status", show),
            Route("/metrics", metrics),
        ]
    )


async def serve_web(
    address: tuple[str, int],
    status: Callable[[], dict[str, Any]],
    ready: Callable[[], bool],
    collector: Collector,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    """Serve until cancelled; starts with the bound URLs.

    Raises:
      P2PError: the address is in use or not ours.
    """
    config = Config()
    config.bind = [format_address(*address)]
    config.graceful_timeout = 0.5
    config.errorlog = None
    app: Any = application(status, ready, collector)
    try:
        await serve(app, config, shutdown_trigger=trio.sleep_forever, task_status=task_status)
    except* OSError as group:
        raise P2PError(f"cannot listen on --http {config.bind[0]}: in use, or not ours") from group
