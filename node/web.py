"""`--http`: this node's health, status and metrics. It shows no secret."""

from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from node.status import Status
from p2p.errors import P2PError
from p2p.units import format_address


class NodeCollector(Collector):
    """Metrics made from the status at the moment of the scrape."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Any:
        """Families in base units."""
        status = self._status()
        transferred = CounterMetricFamily(
            "p2p_chunk_bytes", "Payload bytes moved.", labels=["source", "direction"]
        )
        transferred.add_metric(["origin", "in"], status["origin_bytes"])
        transferred.add_metric(["peer", "in"], status["peer_bytes"])
        transferred.add_metric(["peer", "out"], status["served_bytes"])
        yield transferred
        yield CounterMetricFamily(
            "p2p_corrupt_chunks", "Chunks refused or dropped.", value=status["corrupt_chunks"]
        )
        for name, key, text in (
            ("p2p_peers", "peers", "Control sessions with peers."),
            ("p2p_model_bytes", "bytes", "Size of the model."),
            ("p2p_held_bytes", "held_bytes", "Verified bytes in the cache."),
            ("p2p_complete", "complete", "1 when every chunk is verified."),
        ):
            yield GaugeMetricFamily(name, text, value=float(status[key]))


def _application(status: Status) -> Starlette:
    registry = CollectorRegistry()
    registry.register(NodeCollector(status))

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> Response:
        complete = status()["complete"]
        return PlainTextResponse(
            "complete\n" if complete else "incomplete\n", 200 if complete else 503
        )

    async def show(_request: Request) -> Response:
        return JSONResponse(status())

    async def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/status", show),
            Route("/metrics", metrics),
        ]
    )


async def serve_web(
    address: tuple[str, int], status: Status, task_status: trio.TaskStatus[list[str]]
) -> None:
    """Serve until cancelled; starts with the bound URLs.

    Raises:
      P2PError: the address is in use or not ours.
    """
    config = Config()
    config.bind = [format_address(*address)]
    config.graceful_timeout = 0.5
    config.errorlog = None
    try:
        await serve(_application(status), config, task_status=task_status)  # type: ignore[arg-type]
    except* OSError as group:
        raise P2PError(f"cannot listen on http address {config.bind[0]}: in use?") from group
