"""How the reference decides: counters that run over calls and clips, and a store of MLP outputs by timestep.

It is written from the reference's behaviour and shares no code with our planning, so each can be checked against the other. A
counter restarts after as many calls as the reference's number of steps, whether a clip has ended or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pab.broadcast.rules import ATTENTION_KINDS

STACKS = ("spatial", "temporal")


@dataclass(frozen=True, kw_only=True)
class Decided:
    """The reference's decisions in the calls of one clip.

    `attention`: kind -> one letter per call. `mlp`: (stack, block) -> the same. `sources`: kind, or (stack, block) -> for
    each call, the call whose output it uses; negative for calls of earlier clips. `counters`: kind -> value of the counter
    after the clip. `left`: stack -> what stays in the store, by timestep and block.
    """

    attention: Mapping[str, str]
    mlp: Mapping[tuple[str, int], str]
    sources: Mapping[Any, Sequence[int]]
    counters: Mapping[str, int]
    left: Mapping[str, Sequence[tuple[int, int]]]

    def computed(self, kind: str) -> int:
        """Returns how many calls of a kind compute, per site."""
        return self.attention[kind].count("C")

    @property
    def looks_back(self) -> bool:
        """Whether any output of an earlier clip is reused."""
        return any(source < 0 for sources in self.sources.values() for source in sources)


@dataclass(kw_only=True)
class Reference:
    """One set of counters and one store, kept between clips. `config` None: no broadcast."""

    config: Mapping[str, Any] | None
    counted: int
    depth: int
    stacks: Sequence[str] = STACKS
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ATTENTION_KINDS, 0))
    latest: dict[str, int] = field(default_factory=dict)
    store: dict[str, dict[tuple[int, int], int]] = field(default_factory=lambda: {stack: {} for stack in STACKS})
    calls_before: int = 0

    def decide(self, timesteps: Sequence[int]) -> Decided:
        """Decides the calls of one clip. Raises KeyError where the reference stops because it finds no stored output."""
        attention: dict[str, str] = dict.fromkeys(ATTENTION_KINDS, "")
        places = [(stack, block) for stack in self.stacks for block in range(self.depth)]
        mlp: dict[tuple[str, int], str] = dict.fromkeys(places, "")
        sources: dict[Any, list[int]] = {key: [] for key in (*ATTENTION_KINDS, *places)}
        rules = {stack: self._mlp_rules(stack) for stack in self.stacks}
        for call, timestep in enumerate(timesteps):
            for kind in ATTENTION_KINDS:
                letter, source = self._attention(kind, timestep, self.calls_before + call)
                attention[kind] += letter
                sources[kind].append(source - self.calls_before)
            for stack, block in places:
                letter, source = self._mlp(rules[stack], (stack, block), timestep, timesteps, self.calls_before + call)
                mlp[stack, block] += letter
                sources[stack, block].append(source - self.calls_before)
        self.calls_before += len(timesteps)
        left = {stack: tuple(sorted(entries)) for stack, entries in self.store.items()}
        return Decided(attention=attention, mlp=mlp, sources=sources, counters=dict(self.counters), left=left)

    @property
    def on(self) -> bool:
        """Whether the reference broadcasts. Without any kind of attention it does not, and its counters do not move."""
        return self.config is not None and any(self.config.get(f"{kind}_broadcast") for kind in ATTENTION_KINDS)

    def _attention(self, kind: str, timestep: int, call: int) -> tuple[str, int]:
        letter = "C"
        if self.on:
            assert self.config is not None
            if self.config.get(f"{kind}_broadcast"):
                low, high = self.config[f"{kind}_threshold"]
                if self.counters[kind] % self.config[f"{kind}_range"] and low < timestep < high:
                    letter = "B"
            self.counters[kind] = (self.counters[kind] + 1) % self.counted
        if letter == "C":
            self.latest[kind] = call
        return letter, self.latest.get(kind, -1)

    def _mlp(
        self,
        rules: Mapping[int, Any],
        place: tuple[str, int],
        timestep: int,
        timesteps: Sequence[int],
        call: int,
    ) -> tuple[str, int]:
        stack, block = place
        if timestep in rules and block in rules[timestep]["block"]:
            self.store[stack][timestep, block] = call
            return "S", call
        for key, rule in rules.items():
            if key not in timesteps:
                continue
            first = timesteps.index(key)
            covered = timesteps[first : first + 1 + rule["skip_count"]]
            if timestep in covered:
                if block not in rule["block"]:
                    break
                source = self.store[stack][key, block]
                if timestep == covered[-1]:
                    del self.store[stack][key, block]
                return "B", source
        return "C", call

    def _mlp_rules(self, stack: str) -> dict[int, Any]:
        if not self.on or not self.config or not self.config.get("mlp_broadcast"):
            return {}
        return {int(key): rule for key, rule in (self.config.get(f"mlp_{stack}_broadcast_config") or {}).items()}
