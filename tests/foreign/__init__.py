"""Other projects' test suites, run on uvloop's reactor and Twisted's epoll: `make foreign`."""
