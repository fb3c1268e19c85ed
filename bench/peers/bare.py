"""The least a Python server can be: one socket, one fixed answer per request. `python3 -I -S bare.py PORT`; with no
port it serves the listener inherited as descriptor 3."""
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: text/plain\r\n\r\nhello\n"

if len(sys.argv) > 1:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", int(sys.argv[1])))
    server.listen(128)
else:
    server = socket.socket(fileno=3)

while True:
    client, _ = server.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    head = b""
    while True:
        while b"\r\n\r\n" not in head:
            data = client.recv(65536)
            if not data:
                break
            head += data
        if not head:
            break
        request, _, head = head.partition(b"\r\n\r\n")
        client.sendall(ANSWER)
        if b"connection: close" in request.lower():
            break
    client.close()
