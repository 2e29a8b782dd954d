"""Handlers that are Twisted's: a protocol class, and a function that makes a factory."""

from __future__ import annotations

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import Portal
from twisted.protocols.basic import LineReceiver
from twisted.words.service import InMemoryWordsRealm, IRCFactory


class Shout(LineReceiver):
    def connectionMade(self) -> None:
        self.sendLine(b"Say something")

    def lineReceived(self, line: bytes) -> None:
        self.sendLine(line.upper())


def chat() -> IRCFactory:
    realm = InMemoryWordsRealm("example.org")
    realm.createGroupOnRequest = True
    users = InMemoryUsernamePasswordDatabaseDontUse()
    users.addUser("happy", "secret")
    return IRCFactory(realm, Portal(realm, [users]))
