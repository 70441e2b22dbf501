"""A router: `python advertise.py IFNAME` sends one router advertisement (RFC 4861, section 4.2) to all nodes."""

import socket
import struct
import sys

index = socket.if_nametoindex(sys.argv[1])
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as router:
    router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    router.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    # type, code, checksum (the kernel's), current hop limit, flags, router lifetime in s, reachable and retransmit time
    router.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0, 0, index))
