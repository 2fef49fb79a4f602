"""The tracker's metrics, made from its status at the moment of the scrape."""

from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tracker.directory import Directory


class TrackerCollector(Collector):
    """Prometheus families of all models."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def collect(self) -> Any:
        """Families in base units, one sample a model."""
        models = self._directory.status()["models"]
        origin = CounterMetricFamily(
            "p2p_origin_bytes", "Body bytes read from the origin by all nodes.", labels=["model"]
        )
        for model in models:
            origin.add_metric([model["model"]], model["origin_bytes"])
        yield origin
        for name, text, key in (
            ("p2p_model_bytes", "Size of the model.", "bytes"),
            ("p2p_leases", "Chunks that nodes may fetch now.", "leased_chunks"),
            ("p2p_queued_chunks", "Chunks that nobody holds or fetches.", "queued_chunks"),
            ("p2p_complete_nodes", "Nodes that hold everything.", "complete_nodes"),
        ):
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            for model in models:
                gauge.add_metric([model["model"]], model[key])
            yield gauge
        nodes = GaugeMetricFamily("p2p_nodes", "Nodes with a session.", labels=["model"])
        for model in models:
            nodes.add_metric([model["model"]], len(model["nodes"]))
        yield nodes
