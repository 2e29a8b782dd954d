"""Test suites of others, run on the uvloop reactor and on Twisted's epoll: `make foreign`."""
