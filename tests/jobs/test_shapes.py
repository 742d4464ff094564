"""From its row to its record a clip has five shapes. Read from the source: what classes are there, and what they hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ON_THE_PATH = ("manifests/clip.py", "pab/family.py", "pab/model.py", "pab/sampling/*.py", "jobs/rendering/*.py")
SHAPES = {
    "Clip": "manifests/clip.py",
    "Attempt": "jobs/rendering/clip_attempt.py",
    "ClipRequest": "pab/family.py",
    "Denoised": "pab/sampling/denoise.py",
    "ClipRecord": "jobs/rendering/record.py",
}
"""Row, attempt, request to the model, denoised, record; docs/architecture.md tells of them."""
NO_CLIP = {
    "what a family is": "Family ClipDefaults ClipLimits CostFigures MemoryFigures LoadRequest Sampling QualityFloor",
    "what a loaded model can do": (
        "VideoModel RendersBatches UsesKernels UsesFloat8 UsesFloat8Attention DecodesFast Recordable TakesReferences "
        "TakesImage Beginning BringsText Scheduler"
    ),
    "schedulers": "GuidesByStep CombinesBranches RectifiedFlow DDIM PNDM EulerAncestral _SideBySide",
    "how a loop is run": "LoopSettings LoopRecorder Recording",
    "clocks and measures": (
        "DeviceClock Stages ClipOnDevice DeviceUse Measures EnergyCounter NvmlCounter EnergyMeter _Interval ComingEnergy"
    ),
    "a field of a shape, or an argument of one call": (
        "EncodedPrompt StepInput ComingFrames DecodedFrames Sound ClipReferences Energy WaitsForEnergy"
    ),
    "a job and its parts": (
        "JobContext JobRanks Place LoadedFamily ClipLoop Finisher Announcer OpenAttempts HangWatch Deadline Guard "
        "_Judging _ShardRun _End"
    ),
    "many clips": "Todo Batching BatchSize KindOfClip GuardedPlan",
    "how clips of a kind keep their outputs": "KeepWay",
    "errors": "NotFiniteError GroupLostError GroupKilledError GroupError NoEnergyError",
}
"""Every other class of these files, and why it is no shape of a clip. A new class has to be put here, or fails."""
HOLDS_A_SHAPE = {
    "StepInput": "the request goes with each pass of the model",
    "Todo": "all clips of a job",
    "Guard": "samples that wait for the decision about their plan",
    "_Judging": "all clips of a job, while a plan is judged",
    "Finisher": "clips that wait for their encoding",
}
"""Of those, the ones with a field that is a shape. Nothing else may hold one: it would be one more shape of the clip."""
OTHERS = {name: why for why, names in NO_CLIP.items() for name in names.split()}


@dataclass
class Class:
    """A class of the path: its file, and its fields with their annotations."""

    name: str
    path: str
    fields: dict[str, str] = field(default_factory=dict)


def trees(*patterns: str) -> Iterator[tuple[str, ast.Module]]:
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def names_in(annotation: ast.expr | None) -> set[str]:
    """Returns the names in an annotation, those in quotes too; of `Annotated[type, ...]` those of the type, of words none."""
    found: set[str] = set()
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return found
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        annotation = annotation.slice.elts[0]
    for node in ast.walk(annotation) if annotation is not None else ():
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= names_in(ast.parse(node.value, mode="eval").body)
    return found


def fields_of(node: ast.ClassDef) -> dict[str, str]:
    """Returns annotated fields, and what `__init__` is given or annotates."""
    fields = {
        ast.unparse(each.target): ast.unparse(each.annotation) for each in node.body if isinstance(each, ast.AnnAssign)
    }
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            kept = [each for each in ast.walk(method) if isinstance(each, ast.AnnAssign)]
            fields |= {ast.unparse(each.target): ast.unparse(each.annotation) for each in kept}
            fields |= {each.arg: ast.unparse(each.annotation) for each in method.args.args if each.annotation}
    return fields


def classes(*patterns: str) -> list[Class]:
    return [
        Class(name=node.name, path=path, fields=fields_of(node))
        for path, tree in trees(*patterns)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]


def holds(fields: dict[str, str]) -> set[str]:
    """Returns the shapes that fields hold; a function that takes one is not one that holds it."""
    plain = [text for text in fields.values() if "Callable" not in text]
    return {name for text in plain for name in names_in(ast.parse(text, mode="eval").body) if name in SHAPES}


def steps_of_the_way(known: set[str]) -> Iterator[tuple[set[str], set[str]]]:
    """Yields what each function and each constructor of the path is given, and what it returns, of classes of the path."""
    for found in classes(*ON_THE_PATH):
        given = {name for text in found.fields.values() for name in names_in(ast.parse(text, mode="eval").body)}
        yield given & known, {found.name}
    for _, tree in trees(*ON_THE_PATH):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                arguments = [*node.args.args, *node.args.kwonlyargs]
                given = {name for each in arguments for name in names_in(each.annotation)}
                yield given & known, names_in(node.returns) & known


def test_every_class_on_the_path_is_one_of_five_shapes_or_said_not_to_be():
    found = {(each.name, each.path) for each in classes(*ON_THE_PATH)}
    assert {(name, path) for name, path in found if name in SHAPES} == set(SHAPES.items())
    assert len(SHAPES) == 5
    unknown = sorted((name, path) for name, path in found if name not in SHAPES and name not in OTHERS)
    assert not unknown, f"neither a shape of a clip nor said why not in NO_CLIP: {unknown}; fold it, or say why"
    gone = sorted(set(OTHERS) - {name for name, _ in found})
    assert not gone, f"no longer there, take them out: {gone}"


def test_nothing_but_a_shape_holds_a_clips_shape():
    holders = {each.name for each in classes(*ON_THE_PATH) if holds(each.fields) and each.name not in SHAPES}
    assert holders == set(HOLDS_A_SHAPE)


def test_a_clip_gets_from_row_to_record_by_way_of_all_five():
    reached, step = {"Clip"}, set[str]()
    known = set(SHAPES)
    while reached != step:
        step = set(reached)
        for given, made in steps_of_the_way(known):
            reached |= made & known if given & reached else set()
    assert reached == set(SHAPES)
    # None of them can be left out: what the record is made of is the attempt, with what was denoised.
    ways = list(steps_of_the_way(known))
    assert {name for given, made in ways if "ClipRecord" in made for name in given} == {"Attempt"}
    assert "Denoised" in next(given for given, made in ways if made == {"Attempt"} and "Clip" in given)
    assert any(given == {"ClipRequest"} and made == {"Denoised"} for given, made in ways)


@pytest.mark.parametrize(
    "text", ["tuple[Clip, int]", "list[tuple[Attempt, Denoised]]", "tuple[str, ClipRequest] | None"]
)
def test_a_shape_in_a_tuple_with_something_else_is_found(text):
    assert list(packed(ast.parse(f"def f(x: {text}): ...")))


def packed(tree: ast.AST) -> Iterator[str]:
    """Yields tuples of a shape and something else: a class without a name. `tuple[Clip, ...]` is many clips."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "tuple" and isinstance(node.slice, ast.Tuple):
            parts = node.slice.elts
            many = any(isinstance(each, ast.Constant) and each.value is ... for each in parts)
            if not many and any(names_in(each) & set(SHAPES) for each in parts):
                yield ast.unparse(node)


def test_no_shape_goes_along_in_a_tuple_with_something_else():
    found = {(path, text) for path, tree in trees(*ON_THE_PATH) for text in packed(tree)}
    # What clips have in common, as a key: a request without prompts and seed, and the broadcast.
    assert found == {("jobs/rendering/batching.py", "tuple[ClipRequest, str]")}


MUTABLE = {"list", "dict", "set", "deque", "Counter", "OrderedDict", "defaultdict", "bytearray"}
OF_SETTINGS = {
    ("jobs/settings.py", "JobSettings", "broadcast_rules"),
    ("jobs/settings.py", "JobSettings", "pinned_weights"),
}
"""Read from JSON when a run is submitted, and pickled as they are."""
PACKAGES = [f"{package}/**/*.py" for package in ("manifests", "pab", "jobs", "cluster", "pipeline")]


def frozen_fields_that_can_be_written_to(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("frozen=True" in ast.unparse(each) for each in node.decorator_list):
            for name, text in fields_of(node).items():
                held = "" if "Callable" in text else text
                if held and names_in(_without_setting(ast.parse(held, mode="eval").body)) & MUTABLE:
                    yield node.name, name


def _without_setting(held: ast.expr) -> ast.expr:
    # A setting says more of itself beside its type: `Annotated[int, Setting(...)]`.
    annotated = isinstance(held, ast.Subscript) and ast.unparse(held.value) == "Annotated"
    return held.slice.elts[0] if annotated else held


def test_nothing_frozen_can_be_written_to():
    found = {(path, *each) for path, tree in trees(*PACKAGES) for each in frozen_fields_that_can_be_written_to(tree)}
    assert found == OF_SETTINGS
    past_it = [path for path, tree in trees(*PACKAGES) for node in ast.walk(tree) if _sets_past_frozen(node)]
    assert past_it == []


def _sets_past_frozen(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "object.__setattr__"


def test_the_loop_over_steps_stands_in_denoise():
    (denoise,) = (
        node
        for _, tree in trees("pab/sampling/denoise.py")
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "denoise"
    )
    loops = [node for node in denoise.body if isinstance(node, ast.For)]
    assert [ast.unparse(loop.target) for loop in loops] == ["step"]
    assert ast.unparse(loops[0].iter) == "range(plan.num_steps)"
