"""What the launched tests need of the machine."""

import shutil

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("g++") is None:
        for item in items:
            if "tests/distributed" in item.nodeid and ("zero" in item.nodeid or "deepspeed" in item.nodeid):
                item.add_marker(pytest.mark.skip(reason="DeepSpeed compiles its communication on a CPU: needs g++"))
