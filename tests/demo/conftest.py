"""The brain slices that the tests of the demo share."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from captum_causalseg.demo import BrainSlices, load_brain_slices


@pytest.fixture(scope="module")
def brain() -> BrainSlices:
    """The slices, loaded while every attempt to open a connection fails."""
    pytest.importorskip("nilearn")

    def refuse(*_: Any) -> None:
        raise AssertionError("the demo data must not use the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return load_brain_slices()
