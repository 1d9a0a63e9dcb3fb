#!/usr/bin/env python3
"""Types lines in an interactive bash that has read a file, each with a tab at its end.

usage: type.py FILE <LINES

Prints what has become of each line."""
import os
import pty
import select
import sys
import tempfile
import time

PROMPT = "ready> "


def wait(fd, true):
    """Reads what the terminal shows until something is true of it."""
    shown, until = b"", time.monotonic() + 120
    while not true(shown):
        if time.monotonic() > until:
            sys.exit("the shell says no more than this: %r" % shown)
        if select.select([fd], [], [], 0.02)[0]:
            shown += os.read(fd, 65536)


def main():
    with tempfile.TemporaryDirectory() as folder:
        rc, out = folder + "/rc", folder + "/out"
        with open(rc, "w") as f:
            f.write(
                "PS1='%s'\nbind 'set enable-bracketed-paste off'\n"
                "bind -x '\"\\C-o\": printf \"%%s\\n\" \"$READLINE_LINE\" >>%s'\n. %s\n"
                % (PROMPT, out, sys.argv[1])
            )
        pid, fd = pty.fork()
        if pid == 0:
            os.environ.update(INPUTRC="/dev/null", HISTFILE="", TERM="dumb")
            os.execvp("bash", ["bash", "--noprofile", "--rcfile", rc, "-i"])
        open(out, "w").close()
        wait(fd, lambda shown: PROMPT.encode() in shown)
        for n, line in enumerate(sys.stdin, 1):
            # Tab, ^O, and when that has said what stands there, ^U.
            os.write(fd, line.rstrip("\n").encode() + b"\t\x0f")
            wait(fd, lambda shown: open(out).read().count("\n") == n)
            os.write(fd, b"\x15")
        print(open(out).read(), end="")
        os.write(fd, b"exit\n")
        os.waitpid(pid, 0)


main()
