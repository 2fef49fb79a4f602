"""This node's metrics, made from its status at the moment of the scrape."""

from collections.abc import Callable
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class NodeCollector(Collector):
    """Prometheus families of one node."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
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
