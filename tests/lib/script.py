#!/usr/bin/env python3
"""A server that plays a script to the first who connects: script.py SOCKET WORD...

A word is a message: a number, and behind it m with memory of 4096 bytes, e with an eventfd, n with
/dev/null. "wait" lets a moment pass, "close" ends the connection; else it stays open.
"""
import os
import socket
import struct
import sys
import time

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
client, _ = listener.accept()
for word in sys.argv[2:]:
    fds = []
    if word == "wait":
        time.sleep(0.2)
    elif word == "close":
        client.close()
    else:
        if word.endswith("m"):
            fds.append(os.memfd_create("memory"))
            os.truncate(fds[0], 4096)
        elif word.endswith("e"):
            fds.append(os.eventfd(0))
        elif word.endswith("n"):
            fds.append(os.open("/dev/null", os.O_RDWR))
        socket.send_fds(client, [struct.pack("<q", int(word.rstrip("men")))], fds)
        for fd in fds:
            os.close(fd)
time.sleep(1000)
