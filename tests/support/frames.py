"""Raw frames on a link: `python frames.py IFNAME SECONDS FRAME...`, frames in hex.

Prints a line when it hears, sends the frames, and prints each frame that comes in, in hex, until the time is up.
"""

import socket
import sys
import time

ETH_P_ALL = 3

ifname, seconds, *frames = sys.argv[1:]
deadline = time.monotonic() + float(seconds)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
    sock.bind((ifname, ETH_P_ALL))
    print("ready", flush=True)
    for frame in frames:
        sock.send(bytes.fromhex(frame))
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            frame, (_, _, kind, *_) = sock.recvfrom(65535)
        except TimeoutError:
            break
        if kind != socket.PACKET_OUTGOING:
            print(frame.hex(), flush=True)
