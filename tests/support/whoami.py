"""A TCP server that tells each client the address it comes from: `python whoami.py PORT`. Prints a line when ready."""

import socket
import sys

with socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    while True:
        connection, peer = server.accept()
        with connection:
            connection.sendall(str(peer[0]).removeprefix("::ffff:").encode())
