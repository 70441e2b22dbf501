"""A UDP service that prints what it is told, until there is silence: `python record.py ADDRESS PORT SECONDS`."""

import socket
import sys

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind((sys.argv[1], int(sys.argv[2])))
    sock.settimeout(float(sys.argv[3]))
    print("ready", flush=True)
    try:
        while True:
            print(sock.recv(2048).decode(), flush=True)
    except TimeoutError:
        pass
