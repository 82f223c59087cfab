"""Connections that a process breaks, so that who waits on the other side is free."""

from __future__ import annotations

import socket

import pytest

from pipeline.ranks.links import Links


def test_only_what_was_opened_in_the_block_is_broken() -> None:
    links = Links()
    mine, other = socket.socketpair()
    with mine, other:
        with links.noted():
            near, far = socket.socketpair()
        with near, far:
            links.break_off()
            assert near.recv(1) == b"", "its end"
            with pytest.raises(BrokenPipeError):
                far.send(b"x")
            mine.send(b"x")
            assert other.recv(1) == b"x"


def test_sockets_that_listen_stay() -> None:
    links = Links()
    with links.noted():
        listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        links.break_off()
        with socket.create_connection(listener.getsockname(), timeout=10):
            accepted, _ = listener.accept()
            accepted.close()


def test_what_is_closed_already_is_no_fault() -> None:
    links = Links()
    with links.noted():
        near, far = socket.socketpair()
    near.close()
    far.close()
    with socket.socket():  # its number may be that of one of them
        links.break_off()


def test_an_answer_is_waited_for_only_so_long() -> None:
    links = Links()
    with links.noted():
        near, far = socket.socketpair()
    with near, far:
        links.limit(0.1)
        with pytest.raises(BlockingIOError):
            near.recv(1)
        far.send(b"x")
        assert near.recv(1) == b"x"
