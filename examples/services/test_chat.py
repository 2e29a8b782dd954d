"""Tests of the chat, without a network. Run: python -m pytest test_chat.py"""

from chat import Chat

from echod.testing import talk


def test_a_line_goes_to_all_others_and_those_who_left_hear_nothing() -> None:
    ann, bob, eve = talk(Chat), talk(Chat), talk(Chat)
    ann.send(b"hello")
    assert (ann.replies, bob.replies, eve.replies) == ([], [b"hello"], [b"hello"])
    eve.leave()
    bob.send(b"bye")
    assert (ann.replies, eve.replies) == ([b"bye"], [b"hello"])
