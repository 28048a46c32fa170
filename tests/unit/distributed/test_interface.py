"""The interface to another machine is one of this machine's, never the loopback where another leads out."""

import socket

import pytest

from llm_unlearn.distributed import interface

pytestmark = pytest.mark.unit


def test_the_interface_that_has_the_address_on_the_way(monkeypatch):
    monkeypatch.setattr(interface, "_source", {"node-1": "10.0.0.2", "192.0.2.1": "10.0.0.2", "me": "127.0.1.1"}.get)
    monkeypatch.setattr(interface, "_interface_of", {"10.0.0.2": "ib0", "127.0.1.1": "lo"}.get)
    assert interface.interface_to("node-1") == "ib0"
    assert interface.interface_to("me") == "ib0"  # Debian maps a machine's own name to the loopback


def test_the_loopback_of_this_machine_is_found():
    assert interface._interface_of(interface._source("127.0.0.1")) == "lo"
    assert interface.interface_to("127.0.0.1") in {name for _, name in socket.if_nameindex()}
