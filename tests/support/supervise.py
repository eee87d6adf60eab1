"""Runs a command for as long as standard input stays open, then leaves nothing of it behind.

usage: supervise.py DIRECTORY COMMAND...

The caller holds the other end of standard input, so the command ends with the caller even when that is killed
outright. The command's working directory is DIRECTORY, which is removed in the end.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 10
LINUX = sys.platform == "linux"


def wait(child):
    """Returns when the command has ended, or nobody holds standard input any more."""
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], 0.1)
        if readable and not os.read(0, 1):
            return


def my_children():
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # "pid (name) state parent …", where the name may hold anything
            parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            yield int(entry.name)


def kill_all(child):
    """Kills all the command has started, not just its group: LocalStack gives node a session of its own."""
    if LINUX:
        # Each one killed leaves its children to this process, the subreaper, until there are none.
        while True:
            for pid in my_children():
                os.kill(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                return
    # No subreaper elsewhere: LocalStack stops its own children when asked to end.
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def main():
    directory, *command = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = None
    try:
        child = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, start_new_session=True)
        wait(child)
        code = child.returncode
    finally:
        if child:
            kill_all(child)
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
