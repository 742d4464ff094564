"""Our numbers equal the reference implementations'. `--golden DIR` names another folder of the same form."""

from collections.abc import Callable

from tests.golden.cases import Case


def test_agrees_with_reference(golden_case: Case, check: Callable[[Case], None]) -> None:
    check(golden_case)
