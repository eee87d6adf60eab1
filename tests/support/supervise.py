"""Runs a command until its owner ends, then kills all of its processes and removes its directory.

usage: supervise.py [--until-exit-of PID] DIRECTORY COMMAND...

The owner is the process PID, or the process that holds the other end of standard input. The command therefore ends with
its owner, even if the owner is killed. The command's working directory is DIRECTORY, which is removed at the end.

SIGUSR1 asks the command to shut down (SIGTERM).
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
    """Waits until the command or its owner has ended."""
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
        # An ended process stays as a zombie until its parent collects the exit status.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not LINUX


def my_children():
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The format is "pid (name) state parent …"; the name may contain any character.
            parent = entry.joinpath("stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if int(parent) == os.getpid():
            yield int(entry.name)


def kill_all(child):
    """Kills all processes of the command, not just its group: LocalStack starts node in a separate session."""
    if LINUX:
        # This process is the subreaper: it inherits the children of each killed process until none are left.
        while True:
            for pid in my_children():
                os.kill(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                return
    # Other systems have no subreaper. LocalStack stops its own children when it is terminated.
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
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # runs the `finally` block
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = None
    try:
        signal.signal(signal.SIGUSR1, lambda *_: child and child.terminate())
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
