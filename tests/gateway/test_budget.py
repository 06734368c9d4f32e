"""Memory for decoding: an image waits for room, but not longer than its request may take."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.budget import Room


def soon() -> float:
    return time.monotonic() + 30


@pytest.mark.parametrize(("first", "second"), [(60, 60), (100, 1), (500, 10), (10, 500)])
def test_what_has_no_room_waits_for_what_is_there(first: int, second: int) -> None:
    room, inside = Room(100), threading.Event()

    def enter() -> None:
        with room.taken(second, soon()):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with room.taken(first, soon()):
            waiting = pool.submit(enter)
            assert not inside.wait(0.05)
        waiting.result(30)


def test_what_has_room_does_not_wait() -> None:
    room = Room(100)
    with room.taken(50, soon()), room.taken(50, soon()), room.taken(0, soon()):
        pass


def test_waiting_ends_with_the_request_and_leaves_nothing_taken() -> None:
    room = Room(100)
    with room.taken(100, soon()), pytest.raises(TimeoutError), room.taken(1, time.monotonic() + 0.01):
        pass
    with pytest.raises(ZeroDivisionError), room.taken(100, soon()):
        _ = 1 // 0
    with room.taken(100, soon()):
        pass
