"""Makes one test of every reference case found under --golden."""

import pytest

from tests.golden.cases import Case, find_cases
from tests.golden.checks import CHECKS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden")
        if not root.is_dir():
            raise pytest.UsageError(f"--golden {root} is not a folder")
        cases = [case for case in find_cases(root) if case.kind in CHECKS]
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases])


@pytest.fixture
def check(golden_case: Case):
    return CHECKS[golden_case.kind]
