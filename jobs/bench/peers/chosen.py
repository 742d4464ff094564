"""Which models and methods `bench --rows peers` measures, by words. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PEERS = "peers"
"""The group's name in `--rows`."""
OURS, DIFFUSERS, CACHE_DIT = "ours", "diffusers", "cache-dit"
OUR_METHODS = tuple(f"{OURS} {method}" for method in ("searched plans", "PAB", "Foresight", "passes left out"))
PEER_METHODS = (
    *(
        f"{DIFFUSERS} {method}"
        for method in (
            "PAB", "FasterCache", "FirstBlockCache", "MagCache", "TaylorSeer", "TaylorSeer lite", "SeaCache",
        )
    ),
    *(f"{CACHE_DIT} {method}" for method in ("cache-dit", "cache-dit with TaylorSeer")),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained model that comes with the program. `minutes`: of all methods at full size on a data centre GPU, about."""

    minutes: float
    methods: tuple[str, ...]


MODELS: Mapping[str, Trained] = {
    "demo_wan": Trained(minutes=8, methods=(*OUR_METHODS, *PEER_METHODS)),
    "demo": Trained(minutes=3, methods=OUR_METHODS),
}
"""By family. Peers know the classes of the diffusers library, which `demo_wan` has and `demo` has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A model, and which of its methods are measured, as `WHOSE METHOD`."""

    family: str
    methods: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Names each method in `--rows`."""
        return [f"{PEERS}: {self.family} {method}" for method in self.methods]


def is_peers(text: str) -> bool:
    """Whether a part of `--rows` is of this group."""
    return text.partition(":")[0].strip() == PEERS


def chosen_peers(texts: Iterable[str]) -> list[Chosen]:
    """Returns what the texts name, a model once: `peers`, `peers: FAMILY`, `peers: FAMILY METHOD` or `peers: METHOD`.

    METHOD is a part of a method's name. Raises ValueError for words that name nothing, and says what is allowed.
    """
    named = {pair for text in texts for pair in _named(text)}
    return [
        Chosen(family=family, methods=methods)
        for family, trained in MODELS.items()
        if (methods := tuple(method for method in trained.methods if (family, method) in named))
    ]


def _named(text: str) -> list[tuple[str, str]]:
    words = text.partition(":")[2].split()
    families, part = ([words[0]], words[1:]) if words and words[0] in MODELS else ([*MODELS], words)
    pairs = [(family, method) for family in families for method in MODELS[family].methods]
    found = [(family, method) for family, method in pairs if " ".join(part) in method]
    if not found:
        methods = ", ".join(dict.fromkeys(method for _, method in pairs))
        raise ValueError(
            f"--rows {text!r}: {' '.join(part)!r} is no method of {' or '.join(families)}; allowed: {PEERS}: [FAMILY] "
            f"[METHOD], FAMILY one of {', '.join(MODELS)}, METHOD a part of one of: {methods}"
        )
    return found


def listed() -> list[str]:
    """Returns a line for each model, for `bench --list`."""
    return [
        f"{PEERS}: {family}: its trained weights under {len(trained.methods)} ways to leave out work, each at several "
        f"settings; about {trained.minutes:g} min at full size; only where --rows names it"
        for family, trained in MODELS.items()
    ]
