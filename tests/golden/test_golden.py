"""Our numbers equal those of the reference implementations. `--golden DIR` names another folder of cases."""

from collections.abc import Callable

from tests.golden.cases import Case, differences
from tests.golden.checks import FORMS, group_of
from tests.golden.forms import check_case


def test_agrees_with_reference(golden_case: Case, record_property: Callable[[str, object], None]) -> None:
    differences.clear()
    check_case(golden_case, FORMS)
    for precision, difference in differences.items():
        record_property(f"{group_of(golden_case)} {precision}", difference)
