"""A server that tells each client its own name and the client's address: `python serve.py NAME ADDRESS PORT...`.

It listens with TCP and UDP, at `::` for both families. Prints a line when ready.
"""

import selectors
import socket
import sys

name, address, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
with selectors.DefaultSelector() as selector:
    for port in map(int, ports):
        stream = socket.create_server((address, port), family=family, backlog=128, dualstack_ipv6=address == "::")
        selector.register(stream, selectors.EVENT_READ)
        datagrams = socket.socket(family, socket.SOCK_DGRAM)
        if address == "::":
            datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind((address, port))
        selector.register(datagrams, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock: socket.socket = key.fileobj
            if sock.type == socket.SOCK_STREAM:
                connection, peer = sock.accept()
                with connection:
                    connection.sendall(f"{name} {str(peer[0]).removeprefix('::ffff:')}".encode())
            else:
                _, peer = sock.recvfrom(2048)
                sock.sendto(f"{name} {str(peer[0]).removeprefix('::ffff:')}".encode(), peer)
