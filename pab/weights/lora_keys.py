"""Which parameters a LoRA's tensors change, found by their keys and shapes alone. No torch here.

Three ways of writing keys are read: the modules of the diffusers library, those of the model's original repository, and
either of them with `_` for every dot, as Kohya's programs write them. A change is a product of two narrow matrices, or a
whole difference (`diff`, `diff_b`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from pab.weights.files import CheckpointError
from pab.weights.lora import LoraRules, SafetensorsHeader

Shapes = Mapping[str, tuple[int, ...]]
Keys = Mapping[str, str]
"""The keys of one module in a file, by what of it they are."""

DOWN, UP, ALPHA, UP_BIAS = "down", "up", "alpha", "up bias"
WHOLE_WEIGHT, WHOLE_BIAS, WHOLE_MODULATION = "weight", "bias", "modulation"
_ENDINGS = {
    ".lora_A.weight": DOWN,
    ".lora_A.default.weight": DOWN,
    ".lora_down.weight": DOWN,
    ".lora.down.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_B.default.weight": UP,
    ".lora_up.weight": UP,
    ".lora.up.weight": UP,
    ".lora_B.bias": UP_BIAS,
    ".alpha": ALPHA,
    ".diff": WHOLE_WEIGHT,
    ".diff_b": WHOLE_BIAS,
    ".diff_m": WHOLE_MODULATION,
}
"""How keys end, and what of a module they then are."""
_OTHER_KINDS = {
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "a LoRA in three parts",
    "oft_": "OFT",
}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_PEFT = "lora_adapter_metadata"
"""Under this key the library's own files say alpha and more, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What a file adds to one parameter. Keys are those of the file.

    Either `whole`, the difference itself, or the product of `up` and `down`. It is multiplied by `scale`, or by the value of
    `alpha` over `rank`. `first_row`, `rows`: the part of `whole` or `up` that is this parameter's, where the file joins
    several.
    """

    parameter: str
    first_row: int
    rows: int
    whole: str | None = None
    down: str | None = None
    up: str | None = None
    alpha: str | None = None
    rank: int = 1
    scale: float = 1.0


def find_changes(
    header: SafetensorsHeader, parameters: Shapes, rules: LoraRules, *, component: str, file: str
) -> list[Change]:
    """Returns what a file adds to a component with these parameters.

    Raises CheckpointError, which names key and file, for a key that fits nowhere or a shape that does not fit, and for a
    file without any key of a LoRA.
    """
    targets = _Targets(parameters, rules.names)
    return [
        change
        for name, keys in read_modules(header, component=component, file=file).items()
        for change in _changes(name, keys, header, targets, file)
    ]


def read_modules(header: SafetensorsHeader, *, component: str, file: str) -> Mapping[str, Keys]:
    """Returns the keys of a file by the module that they change, as the file calls it, without its prefix.

    Raises CheckpointError for a key of no known ending, halves without each other, and for a file without any key.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in header.shapes:
        if other := next((kind for part, kind in _OTHER_KINDS.items() if part in key), None):
            raise CheckpointError(
                f"{file}: key {key!r} is of {other}, which is not read; only plain LoRA and whole differences are"
            )
        ending = next((ending for ending in _ENDINGS if key.endswith(ending)), None)
        if ending is None:
            raise CheckpointError(
                f"{file}: key {key!r} fits nowhere: keys of a LoRA end with one of {', '.join(_ENDINGS)}"
            )
        keys = modules.setdefault(_without_prefix(key.removesuffix(ending), component), {})
        if _ENDINGS[ending] in keys:
            raise CheckpointError(f"{file}: keys {keys[_ENDINGS[ending]]!r} and {key!r} mean the same; keep one")
        keys[_ENDINGS[ending]] = key
    if not modules:
        raise CheckpointError(f"{file} holds no key of a LoRA; such keys end with one of {', '.join(_ENDINGS)}")
    for keys in modules.values():
        _check_halves(keys, file)
    return modules


def _check_halves(keys: Keys, file: str) -> None:
    needed = {DOWN: (UP,), UP: (DOWN,), ALPHA: (DOWN, UP), UP_BIAS: (DOWN, UP)}
    for part, key in keys.items():
        if missing := [other for other in needed.get(part, ()) if other not in keys]:
            raise CheckpointError(f"{file}: key {key!r} has no {missing[0]} matrix beside it; the file is not whole")


def _without_prefix(name: str, component: str) -> str:
    prefixes = (*_PREFIXES, f"{component}.", *_FLAT_PREFIXES)
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


class _Targets:
    """The parameters that a module's name means: the library's, the original one, or either with `_` for every dot."""

    def __init__(self, parameters: Shapes, names: Mapping[str, tuple[str, ...]]) -> None:
        self.parameters = parameters
        known = {key.rpartition(".")[0] for key in parameters} | set(parameters)
        aliases: dict[str, tuple[str, ...]] = {name: (name,) for name in known if name}
        for original, modules in names.items():
            aliases |= _of_every_block(original, modules, known)
        self._aliases = {name.replace(".", "_"): modules for name, modules in aliases.items()} | aliases

    def of(self, name: str, parameter: str) -> Sequence[str]:
        """Returns the keys of a parameter (`weight`, `bias`) of all modules that a name means; none if one has none.

        What a module holds without a module of its own, such as Wan's modulation, is named by itself.
        """
        modules = self._aliases.get(f"{name}.{parameter}" if parameter == WHOLE_MODULATION else name, ())
        keys = [module if module in self.parameters else f"{module}.{parameter}" for module in modules]
        return keys if all(key in self.parameters for key in keys) else ()


def _of_every_block(original: str, modules: tuple[str, ...], known: Set[str]) -> dict[str, tuple[str, ...]]:
    """Returns the names with the numbers of all blocks put in, as long as the model has their modules."""
    found: dict[str, tuple[str, ...]] = {}
    for number in count():
        named = tuple(module.format(number) for module in modules)
        if not all(name in known for name in named) or original.format(number) in found:
            break
        found[original.format(number)] = named
    return found


def _changes(name: str, keys: Keys, header: SafetensorsHeader, targets: _Targets, file: str) -> Iterator[Change]:
    for part in (WHOLE_WEIGHT, WHOLE_BIAS, WHOLE_MODULATION):
        if part in keys:
            for change in _placed(name, part, keys[part], header.shapes[keys[part]], targets, file):
                yield replace(change, whole=keys[part])
    if DOWN not in keys:
        return
    down, up = header.shapes[keys[DOWN]], header.shapes[keys[UP]]
    if len(down) < 2 or len(up) < 2 or up[1] != down[0] or any(size != 1 for size in up[2:]):
        raise CheckpointError(
            f"{file}: key {keys[UP]!r} has {list(up)} and {keys[DOWN]!r} {list(down)}, which are no product; the ranks differ"
        )
    scaled: dict[str, Any] = {"alpha": keys.get(ALPHA), "rank": down[0]}
    scaled["scale"] = 1.0 if ALPHA in keys else _stated_scale(header, name, down[0], file)
    for change in _placed(name, WHOLE_WEIGHT, keys[UP], (up[0], *down[1:]), targets, file):
        yield replace(change, down=keys[DOWN], up=keys[UP], **scaled)
    if UP_BIAS in keys:
        for change in _placed(name, WHOLE_BIAS, keys[UP_BIAS], header.shapes[keys[UP_BIAS]], targets, file):
            yield replace(change, whole=keys[UP_BIAS], **scaled)


def _placed(name: str, part: str, key: str, shape: tuple[int, ...], targets: _Targets, file: str) -> Iterator[Change]:
    """Yields a change for each parameter, with the rows of a difference of this shape that are its own."""
    wanted = targets.of(name, part)
    if not wanted:
        raise CheckpointError(
            f"{file}: key {key!r} fits nowhere: the model has no {part} of a module {name!r}; is the LoRA for another model?"
        )
    sizes = [targets.parameters[parameter] for parameter in wanted]
    needed = (sum(size[0] for size in sizes), *sizes[0][1:])
    if shape != needed or any(size[1:] != needed[1:] for size in sizes):
        raise CheckpointError(
            f"{file}: key {key!r} changes {list(shape)}, but {' + '.join(wanted)} has {list(needed)}; is the LoRA for a "
            "model of another size?"
        )
    first = 0
    for parameter, size in zip(wanted, sizes, strict=True):
        yield Change(parameter=parameter, first_row=first, rows=size[0])
        first += size[0]


def _stated_scale(header: SafetensorsHeader, name: str, rank: int, file: str) -> float:
    """Returns alpha over the rank as the file's metadata says it; 1 where it says nothing."""
    text = header.metadata.get(_PEFT, "{}")
    try:
        values = {key.partition(".")[2]: value for key, value in json.loads(text).items()}
        patterns = (values.get("alpha_pattern") or {}).items()
        alpha = next((a for part, a in patterns if f".{name}".endswith(f".{part}")), values.get("lora_alpha"))
        scale = 1.0 if alpha is None else float(alpha) / (math.sqrt(rank) if values.get("use_rslora") else rank)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: its metadata {_PEFT} cannot be read ({error!r}); save it again") from error
    if values.get("use_dora"):
        raise CheckpointError(f"{file}: its metadata says that it is of DoRA, which is not read; only plain LoRA is")
    return scale
