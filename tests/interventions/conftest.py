"""Fixtures that tests of layers share."""

import pytest
from transformer_cases import SIZE, case


@pytest.fixture(scope="session")
def cases():
    return {name: case(name) for name in SIZE}
