"""Telling people how a run stands: at its end, when many clips fail, and when its budget is nearly or wholly spent.

They are told by webhook or mail. What does not arrive is noted on the screen, and changes nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.screen import Screen
from pipeline.signals import mail, webhook
from pipeline.signals.mail import Mail, open_mail, read_addresses
from pipeline.signals.urls import read_url
from pipeline.signals.webhook import Webhook

FAILED_SHARE, MIN_ENDED = 0.2, 10
"""Many clips fail: by default this share of those that ended in a submit, of at least so many."""
LONGEST_S = max(2 * webhook.TIMEOUT_S, mail.TIMEOUT_S + 5)
"""So long a run waits for all that it tells at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """Tells everybody in `channels`: nobody if there is none."""

    channels: Sequence[Webhook | Mail]
    output: str
    run_id: str
    screen: Screen

    def tell(self, event: str, text: str, facts: Mapping[str, object] | None = None) -> None:
        """Sends `{"event": ..., "text": ..., "output": ..., "run_id": ...}` and the facts; waits some seconds for it."""
        body = {"event": event, "text": text, "output": self.output, "run_id": self.run_id, **(facts or {})}
        sent = [_Sent(channel.place, partial(_send, channel, body)) for channel in self.channels]
        for each in sent:
            each.start()
        for each in sent:
            each.join(LONGEST_S)
            if each.problem:
                self.screen.note(f"the notification ({event}) did not reach {each.place}: {each.problem}")


class _Sent(threading.Thread):
    """One message on its way."""

    def __init__(self, place: str, send: Callable[[], str | None]) -> None:
        super().__init__(name="notify", daemon=True)
        self.place = place
        self._send = send
        self._said: str | None = None

    def run(self) -> None:
        self._said = self._send()

    @property
    def problem(self) -> str | None:
        return "it takes too long" if self.is_alive() else self._said


def _send(channel: Webhook | Mail, body: Mapping[str, object]) -> str | None:
    if isinstance(channel, Webhook):
        return channel.send(json.dumps(body, default=str).encode())
    subject = f"[pab-pipeline] {body['event']}: run {body['run_id']}"
    rest = [f"{name}: {_words(value)}" for name, value in body.items() if name not in ("event", "text")]
    return channel.send(subject, "\n".join([str(body["text"]), "", *rest, ""]))


def _words(value: object) -> str:
    return json.dumps(value, default=str) if isinstance(value, Mapping) else str(value)


def read_channels(texts: Sequence[str]) -> tuple[str, ...]:
    """Reads who is told: URLs of webhooks and `mailto:` addresses, each text one or several with spaces between.

    Raises ValueError, which says what is needed; it quotes no text, for a webhook's URL may be a secret.
    """
    words = [word for text in texts for word in text.split()]
    for word in words:
        if word.startswith(mail.SCHEME):
            read_addresses(word)
        else:
            read_url(word, "https://hooks.example.org/run or mailto:me@site.org")
    return tuple(words)


def open_channels(words: Sequence[str], variables: Mapping[str, str]) -> tuple[Webhook | Mail, ...]:
    """Returns the channels of what `read_channels` gives. Raises ValueError if this machine has no mailer for one."""
    return tuple(
        open_mail(word, variables) if word.startswith(mail.SCHEME) else Webhook(url=word) for word in words
    )  # fmt: skip


def many_failed(*, rendered: int, failed: int, share: float = FAILED_SHARE) -> bool:
    """Whether so many of the clips that ended failed that somebody should look: `share` of them, of `MIN_ENDED` or more."""
    return rendered + failed >= MIN_ENDED and failed >= share * (rendered + failed)


def read_share(text: str) -> float:
    """Reads `10%` or `0.1`: more than none, at most all. Raises ValueError, which says what is needed."""
    needed = "needs a share above 0% and up to 100%, such as 10% or 0.1"
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError as error:
        raise ValueError(needed) from error
    if not 0 < share <= 1:
        raise ValueError(needed)
    return share
