"""What a driver looks after besides its jobs: the budget of the run, and who is told how it stands, people and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.store.bucket import BucketError
from pipeline.run.bill import Budget
from pipeline.run.run_metrics import Standing
from pipeline.run.run_signals import RunSignals
from pipeline.run.state import Progress
from pipeline.signals.notify import Notifier, many_failed


@dataclass(slots=True, kw_only=True)
class Oversight:
    """`failure_rate`: from which share of the clips that have ended on somebody is told of failures."""

    budget: Budget
    notifier: Notifier
    failure_rate: float
    signals: RunSignals
    _before: Progress | None = None
    _told_failures: bool = False

    def look(self, progress: Progress, standing: Standing) -> None:
        """Sees how far the run is, the first time as its driver begins; tells once when many clips fail from then on."""
        try:
            self.signals.look(progress, standing)
        except BucketError as error:
            self.notifier.screen.note(f"metrics wait for the bucket: {error}")
        before = self._before = self._before or progress
        rendered = len(progress.recorded) - len(before.recorded)
        failed = len(progress.not_rendered) - len(before.not_rendered)
        if not self._told_failures and many_failed(rendered=rendered, failed=failed, share=self.failure_rate):
            self._told_failures = True
            text = f"{failed:,} clips failed, {rendered:,} were rendered"
            self.tell("failures", text, {"failed": failed, "rendered": rendered})

    def tell(self, event: str, text: str, facts: Mapping[str, object] | None = None) -> None:
        """Tells whoever is to be told."""
        self.notifier.tell(event, text, facts)
