"""Helpers that tests share: daemons, clients, servers in the test's own reactor, certificates.

Fixtures are in `conftest.py`; helpers of one folder's tests alone are in that folder.
"""
