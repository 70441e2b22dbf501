"""A neighbour that hears announcements: `python listen.py IFNAME` prints a line when ready and one for each.

The line is `arp` or `na`, the address, and the MAC address that the announcement gives for it. Ends after 10 s of
silence.
"""

import socket
import sys

ETH_P_ALL = 3

with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
    sock.bind((sys.argv[1], ETH_P_ALL))
    sock.settimeout(10)
    print("ready", flush=True)
    while True:
        frame = sock.recv(2048)
        kind = frame[12:14]
        if kind == b"\x08\x06" and frame[28:32] == frame[38:42]:  # sender and target protocol address (RFC 826)
            print("arp", socket.inet_ntop(socket.AF_INET, frame[28:32]), frame[22:28].hex(":"), flush=True)
        if kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_ICMPV6 and frame[54] == 136 and frame[78:80] == b"\2\1":
            print("na", socket.inet_ntop(socket.AF_INET6, frame[62:78]), frame[80:86].hex(":"), flush=True)
