"""Passes in turn: while one waits for an exchange, another one computes, on every rank in the same order.

Each pass has a thread, and one thread runs at a time: it hands the turn on where its exchange is under way, and gets it back
when the others have come to theirs. So no model needs to know of it, blocks may be compiled, and exchanges have one order.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from pab.parallel.exchange import Exchanges

_Result = TypeVar("_Result")


class AbandonedError(RuntimeError):
    """A pass ends because another one, with which it took turns, has failed."""


@dataclass(slots=True)
class Turns:
    """Whose turn it is among `count` passes; pass 0 begins."""

    count: int
    failed: bool = False
    _go: list[threading.Semaphore] = field(default_factory=list)
    _left: list[int] = field(default_factory=list)
    _pass_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = list(range(self.count))
        self._go = [threading.Semaphore(0) for _ in self._left]
        self._go[0].release()

    def run(self, number: int, run: Callable[[], _Result]) -> _Result:
        """Runs a pass in this thread, from its first turn on. Raises AbandonedError if another one has failed."""
        self._pass_of[threading.get_ident()] = number
        done = False
        try:
            self._wait(number)
            result = run()
            done = True
        finally:
            self.failed |= not done
            following = self._after(number)
            self._left.remove(number)
            if following != number:
                self._go[following].release()
        return result

    def hand_on(self) -> None:
        """Lets the other passes run, each up to its next exchange; for the pass whose turn it is."""
        number = self._pass_of[threading.get_ident()]
        following = self._after(number)
        if following != number:
            self._go[following].release()
            self._wait(number)

    def _after(self, number: int) -> int:
        return next((other for other in self._left if other > number), self._left[0])

    def _wait(self, number: int) -> None:
        self._go[number].acquire()
        if self.failed:
            raise AbandonedError("another pass of this step failed")


def in_turn(runs: Sequence[Callable[[], _Result]], exchanges: Exchanges, device: torch.device) -> list[_Result]:
    """Returns what each pass returns. Where one exchanges over the axis of `exchanges`, the next one goes on.

    All compute on this thread's stream, in inference mode if this thread is in it. Raises what a pass raises.
    """
    if len(runs) == 1:
        return [runs[0]()]
    turns = Turns(len(runs))
    exchanges.while_under_way = turns.hand_on
    try:
        with ThreadPoolExecutor(len(runs) - 1) as threads:
            others = [
                threads.submit(contextvars.copy_context().run, turns.run, number, _like_here(run, device))
                for number, run in enumerate(runs[1:], start=1)
            ]
            try:
                first = turns.run(0, runs[0])
            except AbandonedError as abandoned:
                raise _failure(others) or abandoned from abandoned
            if (failure := _failure(others)) is not None:
                raise failure
            return [first, *(other.result() for other in others)]
    finally:
        exchanges.while_under_way = None


def _failure(runs: Sequence[Future[_Result]]) -> BaseException | None:
    """Returns what went wrong first: the others were abandoned for it."""
    errors = [run.exception() for run in runs]
    return next((error for error in errors if not isinstance(error, AbandonedError | None)), None)


def _like_here(run: Callable[[], _Result], device: torch.device) -> Callable[[], _Result]:
    inference = torch.is_inference_mode_enabled()
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return partial(_run_as, run, inference, stream)


def _run_as(run: Callable[[], _Result], inference: bool, stream: torch.cuda.Stream | None) -> _Result:
    # These belong to a thread, and a new one has them not.
    with torch.inference_mode(inference), torch.cuda.stream(stream):
        return run()
