"""What a test needs of the machine beside Python."""

import os
from typing import NoReturn

import pytest


def lacks(reason: str) -> NoReturn:
    """Skip the test, but fail it in CI, which installs everything."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must not skip this test: {reason}")
    pytest.skip(reason)
