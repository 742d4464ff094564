import os
from pathlib import Path

import pytest

# Without a GPU Triton's kernels run in its interpreter; it is asked when they are imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

DEFAULT_GOLDEN = Path(__file__).parent / "data" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=DEFAULT_GOLDEN,
        metavar="DIR",
        help="folder of reference numbers to check against",
    )


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Says how many reference cases were checked and how far they differ, also where other processes ran the tests."""
    done = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and "test_agrees_with_reference[" in report.nodeid
    ]
    if not done:
        return
    from tests.golden.cases import find_cases
    from tests.golden.checks import group_of

    found = find_cases(config.getoption("--golden"))
    unknown = [case.name for case in found if group_of(case) is None]
    known = len(found) - len(unknown)
    terminalreporter.write_line(
        f"golden: {len(done) - len(unknown)} of {known} known cases checked in {config.getoption('--golden')}; "
        + (f"not known, and failed: {', '.join(unknown)}" if unknown else "none unknown")
    )
    largest: dict[str, float] = {}
    for name, difference in (each for report in done for each in report.user_properties):
        largest[name] = max(largest.get(name, 0.0), difference)
    for name, difference in sorted(largest.items()):
        terminalreporter.write_line(f"golden: {name} differs by at most {difference:.2g}")
