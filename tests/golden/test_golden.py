"""Our numbers equal the reference implementations'. `--golden DIR` names another folder of the same form."""

from collections.abc import Callable

from tests.golden.cases import Case, differences


def test_agrees_with_reference(
    golden_case: Case, check: Callable[[Case], None], record_property: Callable[[str, object], None]
) -> None:
    differences.clear()
    check(golden_case)
    for precision, difference in differences.items():
        record_property(f"{golden_case.kind} {precision}", difference)
