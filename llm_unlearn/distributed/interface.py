"""Name the network interface by which this machine reaches another: what gloo and NCCL should connect through.

    python -m llm_unlearn.distributed.interface node-1

Both guess otherwise. Gloo takes the address of the machine's own name, which on many is that of the loopback.
"""

import fcntl
import socket
import struct
import sys

SIOCGIFADDR = 0x8915  # Linux: the address of an interface


def interface_to(address: str) -> str | None:
    """The interface, or None where no IPv4 route leads to the address.

    On the machine itself, where the name may stand for the loopback, it is the one that leads out.
    """
    name = _interface_of(_source(address))
    if name is None or name == "lo":
        name = _interface_of(_source("192.0.2.1")) or name  # documentation's address, reached by the default route
    return name


def _source(address: str) -> str | None:
    """This machine's own address on the way to another; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            return probe.getsockname()[0]
        except OSError:
            return None


def _interface_of(own: str | None) -> str | None:
    """The interface that has an address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    return None


if __name__ == "__main__":
    print(interface_to(sys.argv[1]) or "")
