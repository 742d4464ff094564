"""The exchanges of one axis of ranks: made, counted and timed, the same in blocks that run as they are and in compiled ones.

A compiled graph knows an exchange as one operation. It takes numbers and tensors alone, so it finds the axis by the name of
its process group, and there it counts. What is given away is copied once, into the order in which it is sent; what comes is
where it belongs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pab.parallel.marks import Mark, mark_now, seconds_between


@dataclass(frozen=True, slots=True)
class Traffic:
    """Collectives of one rank. Bytes do not include what a rank keeps for itself."""

    all_to_alls: int = 0
    all_to_all_bytes: int = 0
    gathers: int = 0
    gather_bytes: int = 0

    def plus(self, other: Traffic) -> Traffic:
        """Returns both together."""
        return Traffic(
            self.all_to_alls + other.all_to_alls,
            self.all_to_all_bytes + other.all_to_all_bytes,
            self.gathers + other.gathers,
            self.gather_bytes + other.gather_bytes,
        )

    def since(self, earlier: Traffic) -> Traffic:
        """Returns what was counted since an earlier count."""
        return Traffic(
            self.all_to_alls - earlier.all_to_alls,
            self.all_to_all_bytes - earlier.all_to_all_bytes,
            self.gathers - earlier.gathers,
            self.gather_bytes - earlier.gather_bytes,
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """Seconds of a rank's exchanges, waiting for slower ranks in them.

    `exposed_s`: in which it had nothing else to do. `hidden_s`: in which it computed something else.
    """

    exposed_s: float = 0.0
    hidden_s: float = 0.0

    def plus(self, other: Waiting) -> Waiting:
        """Returns both together."""
        return Waiting(self.exposed_s + other.exposed_s, self.hidden_s + other.hidden_s)


@dataclass(slots=True)
class Span:
    """One exchange: from where to where it went on, and from where on there was nothing to do but to wait for it.

    `ended`: None if nothing could run beside it; it ended where the waiting did.
    """

    begun: Mark
    asked: Mark | None = None
    ended: Mark | None = None
    waited: Mark | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an axis exchanges in a recorded loop. `spans`: their marks are set anew by every replay."""

    traffic: Traffic
    spans: tuple[Span, ...]


def _order() -> Tensor:
    with torch.inference_mode(mode=False):  # it is used inside and outside of inference mode
        return torch.zeros(1)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Exchanges:
    """Makes the collectives of one axis.

    `order`: says that it is changed by every exchange, so that a compiled block keeps them in one order, as all ranks must.
    `while_under_way`: what else there is to do during an exchange.
    """

    order: Tensor = field(default_factory=_order)
    group: dist.ProcessGroup | None = None
    name: str = ""
    while_under_way: Callable[[], None] | None = None
    _counted: Traffic = Traffic()
    _spans: list[Span] | None = None
    _beside: torch.cuda.Stream | None = None

    def serve(self, group: dist.ProcessGroup) -> None:
        """Makes the exchanges of a process group from now on."""
        self.group, self.name = group, group.group_name
        _SERVING[self.name] = self

    def snapshot(self) -> Traffic:
        """Returns what was counted so far."""
        return self._counted

    def since(self, earlier: Traffic) -> Traffic:
        """Returns what was counted since an earlier snapshot."""
        return self.snapshot().since(earlier)

    def begin_timing(self) -> None:
        """Times what is exchanged from now on."""
        self._spans = []

    def end_timing(self) -> Waiting:
        """Returns the seconds since `begin_timing`; the device must have reached the last exchange."""
        spans, self._spans = self._spans or [], None
        exposed_s = hidden_s = 0.0
        previous: Mark | None = None
        for span in spans:
            assert span.asked is not None, "an exchange that failed ends the loop"
            assert span.waited is not None, "an exchange that failed ends the loop"
            waited_s = max(0.0, seconds_between(span.asked, span.waited))
            exposed_s += waited_s
            if span.ended is not None:
                if isinstance(span.ended, torch.cuda.Event):
                    span.ended.synchronize()  # of a stream of its own
                # One waits for the one before it, which counts for that one.
                begun = [mark for mark in (span.begun, previous) if mark is not None]
                hidden_s += max(0.0, min(seconds_between(mark, span.ended) for mark in begun) - waited_s)
            previous = span.ended or span.waited
        return Waiting(exposed_s, hidden_s)

    def take_back(self, before: Traffic) -> Recorded:
        """Returns what was counted and timed since a snapshot, and forgets it: it was recorded, and nothing was sent yet."""
        recorded = Recorded(self.since(before), tuple(self._spans or ()))
        self._counted = before
        if self._spans is not None:
            self._spans = []
        return recorded

    def replayed(self, before: Traffic, recorded: Recorded) -> None:
        """Notes that all that was recorded has been exchanged again since a snapshot.

        A graph replays it without a call from here. A recording that calls its steps again has counted and timed itself.
        """
        self._counted = before.plus(recorded.traffic)
        if self._spans is not None and not self._spans:
            self._spans = list(recorded.spans)

    def all_to_all(self, sent: Tensor, given: Sequence[int], taken: Sequence[int]) -> Tensor:
        """Sends the first `given[0]` values to rank 0 and so on; returns those that come, `taken[0]` of rank 0 first."""
        assert self.group is not None, "ranks that exchange are a group"
        received = sent.new_empty(sum(taken))
        bytes_sent = (sent.numel() - given[self.group.rank()]) * sent.element_size()
        self._counted = self._counted.plus(Traffic(all_to_alls=1, all_to_all_bytes=bytes_sent))
        span, even = self._begin(sent.device), len({*given, *taken}) == 1
        work = dist.all_to_all_single(
            _on_the_wire(received),
            _on_the_wire(sent),
            None if even else list(taken),
            None if even else list(given),
            group=self.group,
            async_op=True,
        )
        assert work is not None, "this rank is in the group"
        behind = self._note_end(span, work, sent.device)
        if span is not None:
            span.asked = span.begun
        if self.while_under_way is not None:
            self.while_under_way()
            if span is not None:
                span.asked = mark_now(sent.device)
        work.wait()
        if behind is not None:
            behind.wait()
        self._finish(span, sent.device)
        return received

    def all_gather(self, x: Tensor, size: int) -> Tensor:
        """Returns [size, ...]: every rank's tensor, in rank order. All must have the same shape."""
        x = x.contiguous()
        gathered = x.new_empty(size, *x.shape)
        span = self._begin(x.device)
        if span is not None:
            span.asked = span.begun
        _ALL_GATHER(gathered.view(-1), x.view(-1), group=self.group)
        self._finish(span, x.device)
        self.count_gather(x.numel() * x.element_size() * (size - 1))
        return gathered

    def count_gather(self, num_bytes: int) -> None:
        """Counts one gather, which sends `num_bytes`."""
        self._counted = self._counted.plus(Traffic(gathers=1, gather_bytes=num_bytes))

    def _begin(self, device: torch.device) -> Span | None:
        return None if self._spans is None else Span(begun=mark_now(device))

    def _finish(self, span: Span | None, device: torch.device) -> None:
        if span is not None and self._spans is not None:
            span.waited = mark_now(device)
            self._spans.append(span)

    def _note_end(self, span: Span | None, work: dist.Work, device: torch.device) -> torch.cuda.Event | None:
        # Returns what the stream beside has to reach before this stream goes on; None where there is no such stream.
        if span is None or self.while_under_way is None:
            return None  # nothing else runs meanwhile: it ends where the waiting ends
        if device.type != "cuda":

            def ended(_: object) -> None:
                span.ended = mark_now(device)

            work.get_future().add_done_callback(ended)
            return None
        self._beside = self._beside or torch.cuda.Stream(device)
        with torch.cuda.stream(self._beside):
            work.wait()  # of this stream alone, which has nothing else to do
            span.ended = mark_now(device)
            # A recording ends on the stream where it began, so whatever left that stream has to come back.
            behind = torch.cuda.Event()
            behind.record()
        return behind


def _on_the_wire(x: Tensor) -> Tensor:
    return x if x.element_size() > 1 else x.view(torch.uint8)  # gloo knows no 8-bit floats


_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The first name is that of torch from 2.13 on, which warns of the second."""
_SERVING: weakref.WeakValueDictionary[str, Exchanges] = weakref.WeakValueDictionary()
"""By the name of their process group, which the libraries keep in a table of their own too."""


@torch.library.custom_op("pab::all_to_all", mutates_args=("order",))
def _all_to_all(
    xs: Sequence[Tensor], order: Tensor, axis: str, dim: int, parts: Sequence[int], given: Sequence[int],
    taken: Sequence[int],
) -> Tensor:  # fmt: skip
    order.zero_()
    return _SERVING[axis].all_to_all(packed(xs, dim, parts), given, taken)


@_all_to_all.register_fake
def _(xs: Sequence[Tensor], *others: Any) -> Tensor:
    *_, taken = others
    return xs[0].new_empty(sum(taken))


@torch.library.custom_op("pab::all_gather", mutates_args=("order",))
def _all_gather(x: Tensor, order: Tensor, axis: str, size: int) -> Tensor:
    order.zero_()
    return _SERVING[axis].all_gather(x, size)


@_all_gather.register_fake
def _(x: Tensor, *others: Any) -> Tensor:
    *_, size = others
    return x.new_empty(size, *x.shape)


def gather(exchanges: Exchanges, x: Tensor, size: int) -> list[Tensor]:
    """Returns the tensor of each of `size` ranks. All must have the same shape. Collective."""
    gathered: Tensor = _all_gather(x, exchanges.order, exchanges.name, size)
    return list(gathered.unbind(0))


def packed(xs: Sequence[Tensor], dim: int, parts: Sequence[int]) -> Tensor:
    """Returns [numel] of all `xs`, of one shape: the first part of `dim` of all of them, then the second, and so on.

    Within a part, dim 0 comes first, then which of `xs` it is, then the other dims. One copy; none of a single tensor whose
    `dim` is 0 and that lies in this order already.
    """
    first = xs[0]
    if len(xs) == 1 and dim == 0:
        return first.contiguous().view(-1)
    sent = first.new_empty(len(xs) * first.numel())
    shape, at, start = list(first.shape), 0, 0
    if len(set(parts)) == 1:
        # All parts of one tensor in one go.
        whole = sent.view(len(parts), shape[0], len(xs), *shape[1:dim], parts[0], *shape[dim + 1 :])
        for number, x in enumerate(xs):
            whole[:, :, number].copy_(x.unflatten(dim, (len(parts), parts[0])).movedim(dim, 0))
        return sent
    for part in parts:
        shape[dim] = part
        size = len(xs) * prod(shape)
        block = sent[at : at + size].view(shape[0], len(xs), *shape[1:])
        for number, x in enumerate(xs):
            block[:, number].copy_(x.narrow(dim, start, part))
        at, start = at + size, start + part
    return sent


def exchange(
    exchanges: Exchanges, xs: Sequence[Tensor], *, dim: int, parts: Sequence[int], given: Sequence[int],
    taken: Sequence[int],
) -> Tensor:  # fmt: skip
    """Returns [sum(taken)]: what comes when every rank gets its part of `dim` of this rank's tensors, as `packed` orders it.

    `given`, `taken`: values sent to, and received from, each rank. Collective: one all-to-all.
    """
    received: Tensor = _all_to_all(
        list(xs), exchanges.order, exchanges.name, dim, list(parts), list(given), list(taken)
    )
    return received
