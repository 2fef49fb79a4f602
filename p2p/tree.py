"""Whom to tell of a chunk at once, so that it reaches n nodes in about log(n) steps.

Told to all at once, a chunk's first holder would have to send it n times; told to a few, which tell
a few, it spreads along a tree. There are as many trees as a node has children, and each node has
children in one of them and none in the others (interior-node-disjoint trees: SplitStream, Castro et
al., SOSP 2003), so all send as much as they receive. The trees differ by rotation, and every node
computes them from the ids of the nodes that it knows: no message is needed, and where two know
different nodes, some chunks are told twice and others only by the next batch of haves.

A tree is a preference only: whoever has room may be asked, and all are told in the end.
"""

from collections.abc import Sequence

from p2p.ids import Chunk, NodeId


def told_at_once(
    chunk: Chunk, nodes: Sequence[NodeId], me: NodeId, arity: int, *, first: bool
) -> list[NodeId]:
    """The nodes to tell that `me` holds the chunk now.

    Args:
      nodes: all that are known, with `me`, in an order that all share.
      first: nobody else holds it: the root of its tree is told too.
    """
    count = len(nodes)
    shift = chunk % arity * count // arity
    position = (nodes.index(me) - shift) % count
    places = [0] if first and position else []
    places += range(position * arity + 1, min(position * arity + arity + 1, count))
    return [nodes[(place + shift) % count] for place in places]
