"""Fixtures that tests of several inputs share."""

import pytest


@pytest.fixture(params=["interactive", "few-shot"])
def kind(request) -> str:
    return request.param
