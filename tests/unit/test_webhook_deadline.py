"""Cutting off a call that takes too long, at each moment it can be in."""

import socket
from collections.abc import Iterator

import pytest

from orchestrator.clients.deadline import Call

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


def test_a_call_that_waits_for_its_answer_is_cut_off(pair: Pair) -> None:
    call = Call()
    call.watch(pair[0])
    call.expire()
    assert call.expired
    assert pair[1].recv(1) == b""


def test_a_call_that_was_still_connecting_is_cut_off_once_connected(pair: Pair) -> None:
    call = Call()
    call.expire()
    call.watch(pair[0])
    assert pair[1].recv(1) == b""


def test_a_call_that_has_ended_leaves_the_connection_alone(pair: Pair) -> None:
    call = Call()
    call.watch(pair[0])
    call.watch(None)
    call.expire()
    pair[0].sendall(b"x")
    assert pair[1].recv(1) == b"x"


def test_a_connection_that_closed_in_the_meantime_is_no_error(pair: Pair) -> None:
    call = Call()
    call.watch(pair[0])
    pair[0].close()
    call.expire()
    assert call.expired
