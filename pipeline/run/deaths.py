"""What a driver learns from starts that end without progress: that a node is bad, or that every start dies.

Plain bookkeeping, without clock, bucket or cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

DEATHS_OF_A_NODE = 2
"""Starts that died on a node without progress before no later start goes there."""

Avoid = Callable[[frozenset[str]], frozenset[str]]
"""Asks the cluster to keep later starts off nodes; returns those that it can keep them off."""


@dataclass(slots=True, kw_only=True)
class Deaths:
    """The deaths of one submit. `limit`: so many in a row, with no progress of any job between, are no node's fault.

    A node that is avoided counts twice at most: later deaths on it are of jobs that were on their way there.
    """

    limit: int
    avoid: Avoid
    avoided: frozenset[str] = frozenset()
    in_a_row: int = 0
    _by_node: Counter[str] = field(default_factory=Counter)

    @property
    def every_start_dies(self) -> bool:
        """Whether no further job is to be started until one of those at work has progressed."""
        return self.in_a_row >= self.limit

    @property
    def is_hopeless(self) -> bool:
        """Whether jobs that had been asked for before went on dying as often again."""
        return self.in_a_row >= 2 * self.limit

    def progressed(self, nodes: frozenset[str]) -> None:
        """Takes in that a job on these nodes ended a clip: neither they nor the run are to blame for earlier deaths."""
        self.in_a_row = 0
        for node in nodes:
            del self._by_node[node]

    def died(self, nodes: frozenset[str]) -> frozenset[str]:
        """Takes in a start that died on these nodes without progress; returns the nodes that are avoided from now on."""
        if nodes & self.avoided:
            return frozenset()
        self.in_a_row += 1
        self._by_node.update(nodes)
        bad = frozenset(node for node in nodes if self._by_node[node] >= DEATHS_OF_A_NODE)
        before = self.avoided
        if bad:
            self.avoided = self.avoid(before | bad)
        return self.avoided - before

    def blames_node(self, nodes: frozenset[str]) -> bool:
        """Whether a death on these nodes is put down to one that is avoided now."""
        return bool(nodes & self.avoided)
