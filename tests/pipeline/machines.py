"""A cluster in memory, for tests of the driver."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.job import Job


class Quiet:
    """What a cluster does that never has an answer of its own; a test says what jobs do on it."""

    def cancel(self, jobs: Sequence[Job]) -> None:
        assert not jobs, "no job that has begun is to be ended"

    def refuse_if_cancelled(self) -> None:
        """Is never cancelled."""

    def alive(self) -> list[Job]:
        return []

    def shortage(self, jobs: Sequence[Job], num_nodes: int) -> str | None:
        return None

    def take_back(self, jobs: Sequence[Job]) -> list[Job]:
        return []

    def avoid(self, nodes: frozenset[str]) -> frozenset[str]:
        return nodes
