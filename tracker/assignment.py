"""Whom to introduce to whom.

Up to 64 peers a full mesh (2,450 connections at 50 nodes held in the probe); beyond, random
peers, so that any two nodes are a few steps apart and no node has more than it can serve.
"""

from collections.abc import Mapping
from random import Random

from p2p.ids import NodeId

PEERS = 64


def introduce(
    newcomer: NodeId,
    live: list[NodeId],
    known: Mapping[NodeId, Mapping[NodeId, None]],
    rng: Random,
) -> list[tuple[NodeId, NodeId]]:
    """Pairs (who, hears of whom), both ways, for a node that just came."""
    others = [node for node in live if node != newcomer and node not in known[newcomer]]
    if len(others) > PEERS:
        others = rng.sample(others, PEERS)
    pairs = []
    for other in others:
        pairs += [(newcomer, other), (other, newcomer)]
    return pairs
