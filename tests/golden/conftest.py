"""Makes one test of every reference case found under --golden, and says at the end how many were checked."""

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


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    found = find_cases(config.getoption("--golden"))
    unknown = sorted({case.kind for case in found if case.kind not in CHECKS})
    done = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and "test_agrees_with_reference[" in report.nodeid
    ]
    if not done:
        return  # a run of other tests
    known = sum(case.kind in CHECKS for case in found)
    terminalreporter.write_line(
        f"golden: {len(done)} of {known} known cases checked in {config.getoption('--golden')}; "
        + (f"not known: {', '.join(unknown)}" if unknown else "none unknown")
    )


@pytest.fixture
def check(golden_case: Case):
    return CHECKS[golden_case.kind]
