#!/usr/bin/env python3
"""A server that plays a script to the first who connects: script.py SOCKET WORD...

A word is a message: a number, and behind it m with memory of 4096 bytes, e with an eventfd, n with
/dev/null. "wait" lets a moment pass, far less than what the client takes for a silence, and "pause"
more than that; "close" ends the connection; else it stays open. "flood" sends the leave of a peer
that is not there, again and again, until the client has gone. "full" takes nobody in, and first
lets as many wait as may. "stop" and "continue" are signals to the client.
"""
import os
import signal
import socket
import struct
import sys
import time

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + ".new")
listener.listen(0 if "full" in sys.argv else 128)
if "full" in sys.argv:
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(sys.argv[1] + ".new")
os.rename(sys.argv[1] + ".new", sys.argv[1])  # who sees it can connect
if "full" in sys.argv:
    time.sleep(1000)
client, _ = listener.accept()
listener.close()
for word in sys.argv[2:]:
    fds = []
    if word == "wait":
        time.sleep(0.1)
    elif word == "pause":
        time.sleep(0.5)
    elif word == "close":
        client.close()
    elif word in ("stop", "continue"):
        pid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        os.kill(pid, signal.SIGSTOP if word == "stop" else signal.SIGCONT)
    elif word == "flood":
        try:
            while True:
                client.sendall(struct.pack("<q", 9) * 10000)
        except OSError:
            pass
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
