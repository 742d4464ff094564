"""What crosses between ranks comes out as it was, is of the type that the receiver names, and runs no code."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.outcome import ClipOutcome, Failed, Rendered, Skipped
from jobs.ranks.plain_values import PlainValueError, from_bytes, to_bytes
from jobs.rendering.clip_attempt import Attempt
from jobs.rendering.job_report import Measures
from jobs.rendering.references import ClipReferences
from jobs.rendering.todo import Todo
from pab.conditioning.frame_masks import FrameMask
from pab.conditioning.reference_pixels import ReferencePixels
from pab.execution.compiled import Compiled
from tests.jobs.world import clip

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("pipeline", "jobs", "cluster", "pab", "manifests")
FAILED = Failed(clip_id="ä", digest="d", stage="denoise", error="E", message='a\n"b"')
VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    ([1, -(2**70)], list[int]),
    (float("inf"), float),
    ({"a", "b"}, set[str]),
    (("rank", 1), tuple[str, int]),
    ((1, 2, 3), tuple[int, ...]),
    ({1: 0.5}, dict[int, float]),
    ({"x": [b"\0\xff", b""]}, Mapping[str, Sequence[bytes]]),
    ({"any": [1, {"json": None}]}, Any),
    (FAILED, ClipReferences | Failed),
    (None, int | None),
    (
        [Rendered(clip_id="a", digest="1", elapsed_s=1.5), Skipped(clip_id="b", digest="2", reason="recorded"), FAILED],
        list[ClipOutcome],
    ),
]


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=[str(kind)[:40] for _, kind in VALUES])
def test_a_value_comes_out_as_it_was(value: Any, kind: Any) -> None:
    back = from_bytes(to_bytes(value, kind), kind)
    assert (back if not isinstance(back, tuple) or isinstance(value, tuple) else list(back)) == (
        value if not isinstance(value, Mapping) else dict(back)
    )
    assert type(back) is type(value) or isinstance(kind, type(Mapping[str, int]))


def test_what_a_job_exchanges_comes_out_as_it_was() -> None:
    todo = Todo(
        order=(clip(0), clip(1)), attempts=(Attempt(clip=clip(1), number=2),), ended=(FAILED,), put_off=(clip(3),)
    )
    back = from_bytes(to_bytes(todo, Todo), Todo)
    assert back == todo
    assert back.attempts[0].stages.current == "begin"
    measures = Measures(
        load_s={"wan": 1.5}, compiled=Compiled(graphs=2, seconds=0.5),
        strip_png=b"\x89PNG", peak_rss_bytes=2**40,
    )  # fmt: skip
    assert from_bytes(to_bytes(measures, Measures), Measures) == measures
    joined = ([FAILED], ["a"])
    assert (
        from_bytes(to_bytes(joined, tuple[list[ClipOutcome], list[str]]), tuple[list[ClipOutcome], list[str]]) == joined
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3, 4)])
def test_pixels_cross_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    pixels = (torch.randn(shape) * 100).to(dtype)
    mask = FrameMask(levels=(0.0, 1.0), sources=((0, 1), None))
    turned = ReferencePixels(pixels_13THW=pixels.transpose(0, -1) if shape else pixels, start=2)
    references = ClipReferences(masks=(mask, None), pixels=(turned, None), num_frames=(9,))
    back = from_bytes(to_bytes(references, ClipReferences | Failed), ClipReferences | Failed)
    assert (back.masks, back.num_frames, back.pixels[0].start, back.pixels[1]) == ((mask, None), (9,), 2, None)
    sent = references.pixels[0]
    assert sent is not None
    assert back.pixels[0].pixels_13THW.dtype == dtype
    assert torch.equal(back.pixels[0].pixels_13THW, sent.pixels_13THW)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, str), ("1", int), (True, int), ([1, "a"], list[int]), (FAILED, Todo), (object(), object), (print, Any),
        ((1,), tuple[int, int]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_of_another_type_is_not_sent(value: Any, kind: Any) -> None:
    with pytest.raises((PlainValueError, TypeError, ValueError)):
        to_bytes(value, kind)


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/it-ran"),))


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Runs()),
        b"",
        to_bytes("text", str),
        to_bytes({"clip_id": "a"}, Any),
        to_bytes(clip(0), type(clip(0))),
        to_bytes(FAILED, Failed)[:-3],
    ],
    ids=["a pickle", "nothing", "text", "a field too few", "another class", "cut off"],
)
def test_bytes_that_are_not_of_the_type_are_refused(data: bytes) -> None:
    with pytest.raises(PlainValueError, match=f"{len(data)} bytes are no Failed: "):
        from_bytes(data, Failed)


PICKLES = {
    "cluster/pickled.py": "a job and its result, in a folder that only the user may enter",
    "cluster/job_files.py": "errors of reading these",
    "pab/weights/checkpoint.py": "errors of torch.load with weights_only",
    "pab/families/demo/training/feed.py": "from a process to its own child",
}


def uses_pickles(tree: ast.AST) -> bool:
    """Whether code imports pickle, or calls a collective that pickles."""
    return any(
        (isinstance(node, ast.Import) and any(name.name == "pickle" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "pickle")
        or (isinstance(node, ast.Attribute) and node.attr.endswith(("_object", "_object_list")))
        or (
            isinstance(node, ast.ImportFrom)
            and any(name.name.endswith(("_object", "_object_list")) for name in node.names)
        )
        for node in ast.walk(tree)
    )


def test_no_pickle_crosses_between_ranks() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = {path.relative_to(ROOT).as_posix() for path in files if uses_pickles(ast.parse(path.read_text()))}
    assert found == set(PICKLES)
    for source in (
        "dist.all_gather_object(a, b)",
        "from torch.distributed import broadcast_object_list",
        "import pickle",
    ):
        assert uses_pickles(ast.parse(source))
