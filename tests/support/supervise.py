"""Runs a command until its owner ends, then leaves nothing of it behind.

usage: supervise.py [--until-exit-of PID] DIRECTORY COMMAND...

The owner is the process PID, or whoever holds the other end of standard input: so the command ends with its owner even
when that is killed outright. The command's working directory is DIRECTORY, which is removed in the end.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 10
LINUX = sys.platform == "linux"


def wait(child, owner):
    """Returns when the command or its owner has ended."""
    while child.poll() is None:
        if owner:
            time.sleep(0.1)
            if not is_alive(owner):
                return
        else:
            readable, _, _ = select.select([0], [], [], 0.1)
            if readable and not os.read(0, 1):
                return


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A process that has ended stays until its parent asks how.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not LINUX


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
    arguments = sys.argv[1:]
    owner = None
    if arguments[0] == "--until-exit-of":
        owner, arguments = int(arguments[1]), arguments[2:]
    directory, *command = arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through `finally`
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = None
    try:
        child = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, start_new_session=True)
        wait(child, owner)
        code = child.returncode
    finally:
        if child:
            kill_all(child)
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
