"""The form of a case, from its content: the fields and tensors that it has, and the program that made its numbers.

File and folder names do not matter. A form lists all that its cases may state; a case that states something else fails, and
the message names it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safetensors import safe_open

from tests.golden.cases import Case, only, same

PROSE = frozenset({
    "source", "model", "what", "note", "notes", "batch_order", "forward", "legend", "order", "noise_seed", "formula_note",
    "loose", "seed", "input_seed", "beyond_published", "params_without_influence", "params_with_weak_influence",
    "n_trainable", "buffers_in_state_dict", "non_trainable_parameters",
})  # fmt: skip
"""Fields for human readers; no number depends on them."""
MEASURED_ELSEWHERE = ("maxdiff_", "sensitivity_")
"""Prefixes of fields that say how much the reference's own numbers vary."""
AIDS = "mid."
"""Prefixes of tensors that `exceptions` lists as "intermediate results"; a check need not read them, but may."""
STORED = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "BOOL": "bool",
    "BF16": "bfloat16",
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """One form of cases. `group`: the name under which its differences are reported.

    `source`: a pattern for the source or model that a case states. `has`: fields and tensors that a case of this form must
    have; `lacks`: those that it must not have. `fields`, `args`, `tensors` (patterns): all else that it may state, besides
    prose. `config`: keys of its configuration; `inert`: keys that we do not implement, with the value that they must have.
    """

    group: str
    check: Callable[[Case], None]
    source: str
    has: frozenset[str]
    lacks: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()
    args: frozenset[str] = frozenset()
    unread_args: frozenset[str] = frozenset()
    tensors: tuple[str, ...] = ()
    config: frozenset[str] | None = None
    inert: Mapping[str, object] | None = None

    def fits(self, case: Case) -> bool:
        said = {*case.content, *case.tensor_names}
        text = " ".join(str(case.content.get(field, "")) for field in ("source", "model"))
        return self.has <= said and not self.lacks & said and re.search(self.source, text) is not None

    def check_stated(self, case: Case) -> None:
        """Fails for a field, argument, tensor or key of the configuration that the form does not list, and names it."""
        facts = case.content
        prose = {name for name in facts if name in PROSE or name.startswith(MEASURED_ELSEWHERE)}
        only(facts, {*prose, *self.fields, *(self.has & set(facts)), "tensors", "args"}, f"{case.name}: field")
        only(facts.get("args") or {}, {*self.args, *self.unread_args}, f"{case.name}: argument")
        patterns = (*self.tensors, *(re.escape(name) for name in self.has - set(facts)))
        known = {name for name in case.tensor_names if any(re.fullmatch(pattern, name) for pattern in patterns)}
        aids = {name for name in case.tensor_names if name.startswith(AIDS)}
        only(dict.fromkeys(case.tensor_names), known | aids, f"{case.name}: tensor")
        if self.config is not None:
            config = facts["config"]
            only(config, self.config, f"{case.name}: config")
            for key, value in (self.inert or {}).items():
                same(value, config.get(key, value), f"{case.name}: config {key}")
        check_tensor_facts(case)

    def check_read(self, case: Case) -> None:
        """Fails for a value that the case states and its check did not read, and names it."""
        facts = {f for f in case.facts.unread if f not in PROSE and not f.startswith(MEASURED_ELSEWHERE)}
        tensors = {name for name in case.tensors.unread if not name.startswith(AIDS)}
        args = {f"args.{name}" for name in case.args.unread - self.unread_args}
        left = sorted((facts - {"tensors"}) | args | tensors)
        assert not left, f"{case.name}: {', '.join(left)} stated, and not looked at"


def check_tensor_facts(case: Case) -> None:
    """Checks that the tensors are those that the case lists, with their shapes, dtypes and largest values."""
    stated = case.content.get("tensors")
    if stated is None:
        assert not case.tensor_names, f"{case.name}: has tensors and does not list them"
        return
    same(sorted(case.tensor_names), sorted(stated), f"{case.name}: names of tensors")
    with safe_open(case.tensor_file, "pt") as file:
        for name, facts in stated.items():
            where = f"{case.name}: {name}"
            only(facts, {"shape", "dtype", "absmax", "std"}, where)
            part = file.get_slice(name)
            same(list(part.get_shape()), facts["shape"], f"{where} shape")
            same(STORED.get(part.get_dtype()), facts["dtype"], f"{where} dtype")
            if "absmax" in facts and part.get_dtype() != "BOOL":
                largest = file.get_tensor(name).double().abs().max().item()
                assert abs(largest - facts["absmax"]) <= 1e-6 * max(1.0, largest), (
                    f"{where}: largest value {largest}, stated {facts['absmax']}"
                )


def form_of(case: Case, forms: tuple[Form, ...]) -> Form:
    """Returns the one form of a case. Fails for a case of no known form, and names it."""
    fitting = [form for form in forms if form.fits(case)]
    said = ", ".join(sorted({*case.content, *case.tensor_names})[:12]) or "nothing that can be read"
    assert fitting, (
        f"{case.name}: not a form of case that is known. "
        f"Its source: {case.content.get('source', case.content.get('model'))!r}; it states {said}"
    )
    groups = ", ".join(form.group for form in fitting)
    assert len(fitting) == 1, f"{case.name}: fits several forms ({groups}); one of them has to ask for more"
    return fitting[0]


def check_case(case: Case, forms: tuple[Form, ...]) -> None:
    """Checks one case, and that the check reads all that it states."""
    form = form_of(case, forms)
    form.check_stated(case)
    form.check(case)
    form.check_read(case)
