"""Makes one test of every reference case found under --golden, whether its form is known or not."""

import pytest

from tests.golden.cases import find_cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden")
        if not root.is_dir():
            raise pytest.UsageError(f"--golden {root} is not a folder")
        cases = find_cases(root)
        if not cases:
            raise pytest.UsageError(f"--golden {root} holds no case")
        metafunc.parametrize("golden_case", cases, ids=[case.name for case in cases])
