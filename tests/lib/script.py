#!/usr/bin/env python3
"""A server that plays a script to the first who connects: script.py SOCKET PLAYED WORD...

A word is a message: a number, and behind it m with memory of 4096 bytes, e with an eventfd, n with
/dev/null. "wait" lets a moment pass, far less than what the client takes for a silence, and "pause"
more than that; "@FILE" waits until there is such a file; "close" ends the connection; else it stays
open. "flood" sends the leave of a peer that is not there, again and again, until the client has gone.
"full" takes nobody in, and first lets as many wait as may. "stop" and "continue" are signals to the
client.

When all is played, the file PLAYED says "in time"; or "late", if other processes have kept this one
from its work for so long that the client may have taken that for a silence which the script has not.
"""
import os
import signal
import socket
import struct
import sys
import time

SILENCE = 0.3  # what the client takes for one

path, played, words = sys.argv[1], sys.argv[2], sys.argv[3:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path + ".new")
listener.listen(0 if "full" in words else 128)
if "full" in words:
    waiting = socket.socket(socket.AF_UNIX)
    waiting.connect(path + ".new")
os.rename(path + ".new", path)  # who sees it can connect
if "full" in words:
    time.sleep(1000)
client, _ = listener.accept()
listener.close()


def play(word):
    if word == "wait":
        time.sleep(0.1)
    elif word == "pause":
        time.sleep(0.5)
    elif word.startswith("@"):
        while not os.path.exists(word[1:]):
            time.sleep(0.02)
    elif word == "close":
        client.close()
    elif word in ("stop", "continue"):
        pid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        os.kill(pid, signal.SIGSTOP if word == "stop" else signal.SIGCONT)
    elif word == "flood":
        while True:
            client.sendall(struct.pack("<q", 9) * 10000)
    else:
        fds = []
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


# From before one message to behind the next there must be no silence but where it is played.
late, heard = False, None
for word in words:
    before = time.monotonic()
    try:
        play(word)
    except OSError:
        pass  # the client has gone; too early, if it has taken something for a silence
    silence = word == "pause" or word.startswith("@")
    if word == "wait":
        continue
    if heard and not silence and time.monotonic() - heard >= SILENCE:
        late = True
    heard = None if silence or word == "stop" else before
with open(played + ".new", "w") as f:
    print("late" if late else "in time", file=f)
os.rename(played + ".new", played)
time.sleep(1000)
