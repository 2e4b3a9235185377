"""Descriptors: some are always left to the rest of the process."""

from __future__ import annotations

import resource
import sys

import pytest

from jidoka_shm import descriptors


@pytest.mark.parametrize(
    ("soft", "room"),
    [(10, 0), (64, 0), (65, 1), (1024, 960), (resource.RLIM_INFINITY, sys.maxsize)],
)
def test_some_are_left_to_the_rest_of_the_process(
    monkeypatch: pytest.MonkeyPatch, soft: int, room: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, 1 << 20))
    assert descriptors.room() == room
