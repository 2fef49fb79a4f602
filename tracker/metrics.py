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
        status = self._directory.status()
        models = status["models"]
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
        yield from _budgets(status["budgets"])


def _budgets(budgets: list[dict[str, Any]]) -> Any:
    """Families of the accounts at the origin; a limit that is not there has no sample."""
    for word, key in (("bytes", "bytes_s"), ("requests", "requests_s")):
        configured = GaugeMetricFamily(
            f"p2p_origin_budget_configured_{word}_per_second",
            "The account's limit, as configured.", labels=["account"],
        )  # fmt: skip
        in_force = GaugeMetricFamily(
            f"p2p_origin_budget_{word}_per_second",
            "What all nodes together may ask of the origin now.", labels=["account"],
        )  # fmt: skip
        used = CounterMetricFamily(
            f"p2p_origin_budget_used_{word}", "Allowed to nodes so far.", labels=["account"]
        )
        for budget in budgets:
            labels = [budget["account"]]
            used.add_metric(labels, budget[f"used_{word}"])
            for gauge, field in ((configured, "configured"), (in_force, "in_force")):
                if budget[field][key] is not None:
                    gauge.add_metric(labels, budget[field][key])
        yield from (configured, in_force, used)
    refused = CounterMetricFamily(
        "p2p_origin_refused_requests", "Answered with 429 or 503.", labels=["account"]
    )
    for budget in budgets:
        refused.add_metric([budget["account"]], budget["refused_requests"])
    yield refused
