"""Along which trees chunks spread, so that each reaches n nodes in about log(n) steps.

Sent by its first holder to all, a chunk would take n times the time of one transfer; passed on by
those who have it, it spreads along a tree. Every node is in every tree, and the trees differ by
rotation. Up to `ROTATIONS` nodes there is a tree for each node as its root; larger swarms have as
many trees as a node has children, and then a node has children in one of them and none in the
others (interior-node-disjoint trees: SplitStream, Castro et al., SOSP 2003), so that it has few
parents, and few connections that carry much. Either way all send as much as they receive. Every
node computes the trees from the ids of the nodes that it knows: no message is needed.

A tree is a preference only: where two nodes know different ones, or a parent is slow, chunks are
asked of whoever announces them.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

from p2p.ids import Chunk, NodeId

ROTATIONS = 16
ARITY, ARITY_LARGE = 2, 3


def stride(count: int) -> int:
    """The step from one tree to the next: about half of them, and all are reached."""
    steps = sorted(range(1, count + 1), key=lambda step: abs(2 * step - count))
    return next(step for step in steps if gcd(step, count) == 1)


def _order(nodes: Sequence[NodeId], tree: int, trees: int) -> list[NodeId]:
    """The nodes as their places in a tree follow each other, level by level.

    The ring, begun at the tree's root, if there is a tree for each node. Else each tree has a part
    of the nodes first: they have the children. The last one of a part may have fewer, and is the
    first of the others where a tree needs one more. Three times the ring of 50 nodes, begun at each
    third, gave one node four children in three trees, and it was the root of one: it had to send
    1.33 times what its link carries, and a third of all chunks came late to everybody.
    """
    count = len(nodes)
    if trees == count:
        return [*nodes[tree:], *nodes[:tree]]
    begins = [part * count // trees for part in range(trees + 1)]
    own = nodes[begins[tree] : begins[tree + 1]]
    others = [
        (begin - index, nodes[index])
        for part, (begin, end) in enumerate(pairwise(begins))
        if part != tree
        for index in range(begin, end)
    ]
    return [*own, *(node for _, node in sorted(others, key=lambda one: one[0]))]


class Trees:
    """This node's places in all trees.

    Args:
      nodes: all that are known, with `me`, in an order that all share.
    """

    def __init__(self, me: NodeId, nodes: Sequence[NodeId], arity: int | None = None) -> None:
        count = len(nodes)
        arity = arity or (ARITY if count <= ROTATIONS else ARITY_LARGE)
        self.count = count if count <= ROTATIONS else arity
        self._stride = stride(self.count)
        self._above: list[tuple[NodeId, ...]] = []
        self._tops: list[list[NodeId]] = []
        near, owners = set[NodeId](), set[NodeId]()
        for tree in range(self.count):
            order = _order(nodes, tree, self.count)
            place, above = order.index(me), []
            while place:
                place = (place - 1) // arity
                above.append(order[place])
            self._above.append(tuple(above))
            self._tops.append(order[: 1 + arity])
            below = arity * order.index(me) + 1
            near.update(above[:1], order[below : below + arity])
            owners.update([order[0]] if above else nodes)
        self.near = frozenset(near - {me})
        """with whom chunks are exchanged all the time: parents and children"""
        self.roots = frozenset(owners - near - {me})
        """with whom they are when one of the two fetched them: all roots; of a root: everybody"""

    def _tree(self, chunk: Chunk) -> int:
        """Another tree for the next chunk, begun half the ring further: a node has children in the
        half of all trees that begin just before it, and would have to pass on all of eight chunks
        and then none of the next eight. Every `count` chunks one tree is left out: leases go around
        too, and if a tree always got its chunks of the same owner, some nodes would always send one
        chunk of eight more than others (100 and 75 % of their links, of 8 nodes)."""
        return (chunk + chunk // self.count) * self._stride % self.count

    def root(self, chunk: Chunk) -> NodeId:
        """The node that the chunk's owner gives it to first."""
        return self.top(chunk)[0]

    def top(self, chunk: Chunk) -> list[NodeId]:
        """The root and its children."""
        return self._tops[self._tree(chunk)]

    def above(self, chunk: Chunk) -> tuple[NodeId, ...]:
        """The parent, its parent, and so on up to the root; none if this node is it."""
        return self._above[self._tree(chunk)]
