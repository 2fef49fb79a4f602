"""What people see of a model: plain data, no secret. Pure."""

from math import inf
from typing import Any

from tracker.budget import Budget
from tracker.leases import QUEUED
from tracker.member import Node
from tracker.model import Model


def model_status(model: Model) -> dict[str, Any]:
    """One model of `/status`."""
    manifest, leases, sealing = model.manifest, model.leases, model.sealing
    total = manifest.total_bytes if manifest else 0
    chunks = manifest.chunk_count if manifest else 0
    origin_bytes = model.gone_origin_bytes + sum(n.origin_bytes for n in model.nodes.values())
    broken = sealing.seal.broken.values() if sealing and manifest else ()
    return {
        "model": model.name,
        "origin": model.origin,
        "manifest_id": manifest.id.hex() if manifest else "",
        "confirmed": model.confirmed,
        "bytes": total,
        "chunks": chunks,
        "queued_chunks": sum(leases.state(c) == QUEUED for c in range(chunks)) if leases else 0,
        "leased_chunks": leases.in_flight if leases else 0,
        "origin_bytes": origin_bytes,
        "origin_ratio": origin_bytes / total if total else 0.0,
        "started_at": model.started_at,
        "seal": sealing.seal.word if sealing else "",
        "broken_files": [
            {"file": manifest.files[one.file].path, "stored": one.stored, "read": one.read}
            for one in broken
            if manifest
        ],
        "complete_nodes": sum(node.complete for node in model.nodes.values()),
        "nodes": [_node_status(model, node, chunks) for node in model.nodes.values()],
    }


def _node_status(model: Model, node: Node, chunks: int) -> dict[str, Any]:
    return {
        "node": node.node.hex(),
        "addresses": list(node.join.addresses),
        "outdated": node.outdated,
        "held_chunks": len(node.bits) if node.bits is not None else 0,
        "progress": (len(node.bits) / chunks if chunks else 1.0) if node.bits is not None else 0.0,
        "complete": node.complete,
        "origin_bytes": node.origin_bytes,
        "peer_bytes": node.peer_bytes,
        "corrupt_chunks": node.corrupt_chunks,
        "reported": node.reported,
        "leases": model.leases.count(node.node) if model.leases else 0,
    }


def budget_status(account: str, budget: Budget) -> dict[str, Any]:
    """One account of `/status`: configured, in force (None: no limit), and what was allowed."""
    limits = {"bytes_s": budget.bytes, "requests_s": budget.requests}
    return {
        "account": account,
        "configured": {name: limit.configured for name, limit in limits.items()},
        "in_force": {
            name: round(limit.rate, 3) if limit.rate < inf else None
            for name, limit in limits.items()
        },
        "used_bytes": budget.granted_bytes,
        "used_requests": budget.granted_requests,
        "refused_requests": budget.refused_requests,
    }
