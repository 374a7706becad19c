"""The null objects of the ports: harmless, and the only ones of their kind."""

from __future__ import annotations

import copy
import pickle

import pytest

from aether_emu.ports import NEVER_FAILS, NO_TRACE, FailurePoints, Trace


def test_nobody_traces_by_default() -> None:
    trace: Trace = NO_TRACE
    assert not trace.enabled
    trace.event("fault", address=0x1000, kind="write")


def test_nothing_fails_by_default() -> None:
    failures: FailurePoints = NEVER_FAILS
    assert not failures.fails("buddy.alloc")


@pytest.mark.parametrize("null", [NO_TRACE, NEVER_FAILS])
def test_a_captured_null_object_comes_back_as_itself(null: object) -> None:
    assert pickle.loads(pickle.dumps(null)) is null
    assert copy.deepcopy(null) is null
    assert copy.copy(null) is null
