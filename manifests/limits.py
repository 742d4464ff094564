"""What the families allow, as tables: checks distinct settings by column and says what is wrong in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.distinct import distinct_rows
from manifests.errors import shown
from manifests.loras import LORA, LoraCheck
from manifests.rules import FamilyRules
from manifests.sampling import SAMPLING_COLUMNS, decide_sampling
from manifests.schema import LORA_SCHEMA

SIZE_COLUMNS = ("num_frames", "height", "width", "fps", "num_steps")
SETTING_COLUMNS = ("model", "broadcast", *SIZE_COLUMNS, "guidance_scale", *SAMPLING_COLUMNS, LORA)
"""The columns of few distinct values: rows are checked by distinct combinations of them."""

SIZE = "size"
"""What a finding about num_frames, height and width together names as its column."""

Finding = tuple[int, str, str, str]
"""Index of the settings, column, value as shown, what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Distinct settings with every default filled in. All of one length; `broken` marks those with a finding."""

    columns: Mapping[str, pa.Array]
    identity: pa.Array
    broadcast_digest: pa.Array
    broken: npt.NDArray[np.bool_]


class Limits:
    """The rules of all families of a run. Raises ValueError if the rules themselves do not hold together."""

    def __init__(self, rules: Mapping[str, FamilyRules], default_model: str) -> None:
        if default_model not in rules:
            raise ValueError(f"default model {default_model!r} is none of {_names(rules)}; name one of them")
        self._names = sorted(rules)
        self._rules = [rules[name] for name in self._names]
        self._default_model = default_model
        self._broadcasts = sorted({name for family in self._rules for name in family.broadcasts})
        self._num_tokens: dict[tuple[int, int, int, int], int] = {}
        self._identities: dict[int, str] = {}
        self._loras = LoraCheck(self._rules)
        self._unusable: dict[int, str] = {}
        for family in self._rules:
            _check_family(family)
        self.min_prompt_chars = min(family.max_prompt_chars for family in self._rules)
        """A prompt up to this length is short enough for every family."""

    def family(self, name: str) -> FamilyRules | None:
        """Returns the rules of a family, or None if no family has that name."""
        return next((family for family in self._rules if family.name == name), None)

    @property
    def take_references(self) -> tuple[str, ...]:
        """The families whose rows may name references."""
        return tuple(family.name for family in self._rules if family.check_mask is not None)

    @property
    def take_loops(self) -> tuple[str, ...]:
        """The families whose clips may have several loops."""
        return tuple(family.name for family in self._rules if family.clip_loops is not None)

    @property
    def say_sampling(self) -> bool:
        """Whether the run says how rows are sampled that do not say it."""
        return any(name in family.defaults for family in self._rules for name in SAMPLING_COLUMNS)

    def negative_prompts(self, negative_prompt: pa.Array, model: pa.Array) -> pa.Array:
        """Returns negative prompts with the run's own in rows that have none. `model`: of each row."""
        for family in self._rules:
            if "negative_prompt" in family.defaults:
                own = pc.and_(negative_prompt.is_null(), pc.equal(model, family.name))
                negative_prompt = pc.if_else(own, str(family.defaults["negative_prompt"]), negative_prompt)
        return negative_prompt

    def max_prompt_chars(self, models: pa.Array) -> npt.NDArray[np.int64]:
        """Returns the longest allowed prompt per model name (null: the default model); unknown ones have no limit."""
        filled = pc.fill_null(models, self._default_model)
        codes = pc.index_in(filled, pa.array(self._names)).fill_null(len(self._names)).to_numpy(zero_copy_only=False)
        allowed = [family.max_prompt_chars for family in self._rules]
        longest: npt.NDArray[np.int64] = np.array([*allowed, np.iinfo(np.int64).max])[codes]
        return longest

    def check(self, given: Mapping[str, pa.Array]) -> tuple[Settings, list[Finding]]:
        """Fills defaults into distinct settings and checks them.

        `given`: the SETTING_COLUMNS, null where a row has none. Returns the settings and what is wrong with them.
        """
        model = pc.fill_null(given["model"], self._default_model)
        family_index = pc.index_in(model, pa.array(self._names))
        known = family_index.is_valid().to_numpy(zero_copy_only=False)
        codes = family_index.fill_null(0).to_numpy(zero_copy_only=False)
        sampled = decide_sampling(given, self._rules, codes)
        given = {**given, **sampled.columns}
        columns = {"model": model, **{name: given[name] for name in SAMPLING_COLUMNS}}
        for name in (*SIZE_COLUMNS, "guidance_scale", "broadcast"):
            defaults = [family.defaults[name] for family in self._rules]
            columns[name] = pc.coalesce(given[name], pa.array(defaults, given[name].type).take(pa.array(codes)))
        self._ask_identities(np.unique(codes[known]))
        findings = [*self._unknown_models(model, known), *self._unusable_models(model, codes, known)]
        findings += [finding for finding in sampled.findings if known[finding[0]]]
        for name in SIZE_COLUMNS:
            findings += self._outside(name, columns[name].to_numpy(), codes, known)
        findings += self._bad_guidance(columns["guidance_scale"].to_numpy(), codes, known)
        allowed, digests = self._broadcast_digests(columns["broadcast"], codes)
        findings += self._bad_broadcasts(columns["broadcast"], codes, known & ~allowed)
        broken = ~known
        broken[[index for index, *_ in findings]] = True
        findings += self._too_many_tokens(columns, codes, broken)
        broken[[index for index, *_ in findings]] = True
        identities = [self._identities.get(code, "") for code in range(len(self._rules))]
        identity = pa.array(identities, pa.string()).take(pa.array(codes))
        if given[LORA].null_count < len(broken):
            identity, of_loras, bad = self._loras.decide(given[LORA], identity, codes, ~broken)
            columns |= of_loras
            findings += bad
            broken[[index for index, *_ in bad]] = True
        else:
            columns |= {name: pa.nulls(len(broken), pa.string()) for name in LORA_SCHEMA.names}
        if any(sampled.identity):
            identity = pc.binary_join_element_wise(identity, pa.array(sampled.identity), "")
        return Settings(columns=columns, identity=identity, broadcast_digest=digests, broken=broken), findings

    def _unknown_models(self, model: pa.Array, known: npt.NDArray[np.bool_]) -> list[Finding]:
        allowed = f"the models are {', '.join(self._names)}"
        return [(int(i), "model", shown(model[int(i)].as_py()), allowed) for i in np.flatnonzero(~known)]

    def _ask_identities(self, codes: npt.NDArray[np.int64]) -> None:
        for code in (int(code) for code in codes if code not in self._identities and code not in self._unusable):
            try:
                self._identities[code] = _one_line(self._rules[code].name, self._rules[code].identity())
            except (OSError, ValueError) as error:
                self._unusable[code] = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")

    def _unusable_models(
        self, model: pa.Array, codes: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]
    ) -> list[Finding]:
        unusable = np.isin(codes, list(self._unusable)) & known
        return [
            (int(i), "model", shown(model[int(i)].as_py()), f"it cannot be used: {self._unusable[int(codes[i])]}")
            for i in np.flatnonzero(unusable)
        ]

    def _outside(
        self, name: str, values: npt.NDArray[np.int64], codes: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]
    ) -> list[Finding]:
        ranges = [_ascending(getattr(family, name)) for family in self._rules]
        first, last, step = np.array([(each[0], each[-1], each.step) for each in ranges], np.int64).T[:, codes]
        inside = (values >= first) & (values <= last)
        # Values outside may be so large that the difference overflows: they count as bad already.
        bad = ~inside | ((np.where(inside, values, first) - first) % step != 0)
        images = np.array([name == "num_frames" and family.images for family in self._rules])[codes]
        bad &= ~(images & (values == 1))
        return [
            (
                int(i),
                name,
                str(values[i]),
                describe_range(self._names[codes[i]], ranges[codes[i]], int(values[i]))
                + (" or 1 for an image" if images[i] else ""),
            )
            for i in np.flatnonzero(bad & known)
        ]

    def _bad_guidance(
        self, values: npt.NDArray[np.float64], codes: npt.NDArray[np.int64], known: npt.NDArray[np.bool_]
    ) -> list[Finding]:
        low, high = np.array([family.guidance_scale for family in self._rules], float).T[:, codes]
        bad = ~(np.isfinite(values) & (values >= low) & (values <= high)) & known
        return [
            (
                int(i),
                "guidance_scale",
                repr(float(values[i])),
                f"{self._names[codes[i]]} needs {low[i]:g} to {high[i]:g}",
            )
            for i in np.flatnonzero(bad)
        ]

    def _broadcast_digests(
        self, names: pa.Array, codes: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.bool_], pa.Array]:
        table = [[family.broadcasts.get(name, "") for name in self._broadcasts] for family in self._rules]
        allowed = np.array([[name in family.broadcasts for name in self._broadcasts] for family in self._rules])
        indices = pc.index_in(names, pa.array(self._broadcasts))
        known = indices.is_valid().to_numpy(zero_copy_only=False)
        broadcast_codes = indices.fill_null(0).to_numpy(zero_copy_only=False)
        flat = pa.array([digest for row in table for digest in row], pa.string())
        digests = flat.take(pa.array(codes.astype(np.int64) * len(self._broadcasts) + broadcast_codes))
        return known & allowed[codes, broadcast_codes], digests

    def _bad_broadcasts(
        self, names: pa.Array, codes: npt.NDArray[np.int64], bad: npt.NDArray[np.bool_]
    ) -> list[Finding]:
        return [
            (
                int(i),
                "broadcast",
                shown(names[int(i)].as_py()),
                f"{self._has(int(codes[i]))}, and no --broadcast file has that name",
            )
            for i in np.flatnonzero(bad)
        ]

    def _has(self, code: int) -> str:
        return f"{self._names[code]} has {', '.join(sorted(self._rules[code].broadcasts))}"

    def _too_many_tokens(
        self, columns: Mapping[str, pa.Array], codes: npt.NDArray[np.int64], skip: npt.NDArray[np.bool_]
    ) -> list[Finding]:
        rows = np.flatnonzero(~skip)
        names = ("num_frames", "height", "width")
        sizes = np.stack([codes.astype(np.int64), *(columns[name].to_numpy() for name in names)])[:, rows]
        first, inverse = distinct_rows([pa.array(part) for part in sizes])
        tokens = np.array([self._tokens(*map(int, size)) for size in sizes[:, first].T], np.int64)[inverse]
        most = np.array([family.max_tokens for family in self._rules])[codes[~skip]]
        findings = []
        for at in np.flatnonzero(tokens > most):
            code, num_frames, height, width = (int(value) for value in sizes[:, at])
            allowed = f"this is {tokens[at]} tokens, {self._names[code]} allows {most[at]} (max_tokens)"
            findings.append((int(rows[at]), SIZE, f"{width}x{height} with {num_frames} frames", allowed))
        return findings

    def _tokens(self, code: int, num_frames: int, height: int, width: int) -> int:
        key = (code, num_frames, height, width)
        if key not in self._num_tokens:
            self._num_tokens[key] = self._rules[code].num_tokens(num_frames, height, width)
        return self._num_tokens[key]


def describe_range(family: str, allowed: range, value: int) -> str:
    """Says which values are allowed, and the three nearest: `wan needs 4n+1 (77, 81, 85)`."""
    allowed = _ascending(allowed)
    if len(allowed) <= 3:
        return f"{family} needs {' or '.join(map(str, allowed))}"
    low, high = allowed[0], allowed[-1]
    if allowed.step == 1:
        return f"{family} needs {low} to {high}"
    at = min(max(round((value - low) / allowed.step), 0), len(allowed) - 1)
    around = sorted(range(max(0, at - 2), min(len(allowed), at + 3)), key=lambda i: (abs(allowed[i] - value), i))
    near = ", ".join(str(allowed[i]) for i in sorted(around[:3]))
    rest = low % allowed.step
    rule = f"{allowed.step}n{f'+{rest}' if rest else ''}"
    return (
        f"{family} needs {rule} ({near})"
        if low <= value <= high
        else f"{family} needs {rule} from {low} to {high} ({near})"
    )


def _one_line(family: str, text: str) -> str:
    if "\n" in text:
        raise ValueError(f"family {family!r}: a name, identity or digest holds a line break; the digest needs lines")
    return text


def _ascending(allowed: range) -> range:
    return allowed if allowed.step > 0 else allowed[::-1]


def _names(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names))


def _check_family(family: FamilyRules) -> None:
    for line in (family.name, *family.broadcasts, *family.broadcasts.values()):
        _one_line(family.name, line)
    missing = [name for name in (*SIZE_COLUMNS, "guidance_scale", "broadcast") if name not in family.defaults]
    if missing:
        raise ValueError(f"family {family.name!r} has no default for {', '.join(missing)}; add it to its rules")
    for name in SIZE_COLUMNS:
        allowed, value = getattr(family, name), family.defaults[name]
        if value not in allowed:
            number = math.inf if not isinstance(value, int | float) else value
            says = (
                describe_range(family.name, allowed, int(number)) if math.isfinite(number) else "an integer is needed"
            )
            raise ValueError(f"default {name}={value!r}: {says}; change the default")
    low, high = family.guidance_scale
    guidance = family.defaults["guidance_scale"]
    if not isinstance(guidance, int | float) or not low <= guidance <= high:
        raise ValueError(
            f"default guidance_scale={guidance!r}: {family.name} needs {low:g} to {high:g}; change the default"
        )
    broadcast = family.defaults["broadcast"]
    if broadcast not in family.broadcasts:
        raise ValueError(
            f"default broadcast={broadcast!r}: {family.name} has {_names(family.broadcasts)}; choose one of them"
        )
