"""This node's metrics, made from its status at the moment of the scrape."""

from collections.abc import Callable
from math import inf
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
        nics = CounterMetricFamily(
            "p2p_nic_bytes",
            "Payload bytes moved by source address.",
            labels=["source_ip", "direction"],
        )
        rates = GaugeMetricFamily(
            "p2p_nic_bytes_per_second",
            "Payload rate by source address, over about a second.",
            labels=["source_ip", "direction"],
        )
        for nic in status["nics"]:
            for direction in ("in", "out"):
                labels = [nic["source_ip"], direction]
                nics.add_metric(labels, nic[f"{direction}_bytes"])
                rates.add_metric(labels, nic[f"{direction}_bytes_s"])
        yield nics
        yield rates
        yield CounterMetricFamily(
            "p2p_corrupt_chunks", "Chunks refused or dropped.", value=status["corrupt_chunks"]
        )
        yield CounterMetricFamily(
            "p2p_evicted_chunks", "Chunks dropped for room.", value=status["evicted_chunks"]
        )
        yield CounterMetricFamily(
            "p2p_again_bytes", "Bytes that came again after they had been dropped.",
            value=status["again_bytes"],
        )  # fmt: skip
        cache = status["cache_limit_bytes"]
        yield GaugeMetricFamily(
            "p2p_cache_limit_bytes", "What the cache may hold; +Inf: no limit.",
            value=inf if cache is None else float(cache),
        )  # fmt: skip
        limits = GaugeMetricFamily(
            "p2p_limit_bytes_per_second", "Limits in force; +Inf: none.", labels=["direction"]
        )
        for direction, key in (("in", "max_download_bytes_s"), ("out", "max_upload_bytes_s")):
            limits.add_metric([direction], inf if status[key] is None else status[key])
        yield limits
        for name, key, text in (
            ("p2p_peers", "peers", "Control sessions with peers."),
            ("p2p_model_bytes", "bytes", "Size of the model."),
            ("p2p_held_bytes", "held_bytes", "Verified bytes in the cache."),
            ("p2p_complete", "complete", "1 when every chunk is verified."),
        ):
            yield GaugeMetricFamily(name, text, value=float(status[key]))
