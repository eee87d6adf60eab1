"""Installs LocalStack and its Kinesis engine, unless that is done already.

usage: install.py HOME

Leaves HOME/venv, HOME/root (a FILESYSTEM_ROOT with what LocalStack would fetch or compute at first use) and,
written last, the marker HOME/installed. Any number of processes may call this at once: one installs, the
others wait for it.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().with_name("requirements.lock")


def install(home, run):
    # A fresh start: what is there is of another version, or half done.
    for name in ("venv", "root", "cache"):
        shutil.rmtree(home / name, ignore_errors=True)
    run(sys.executable, "-m", "venv", home / "venv")
    python = home / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--requirement", REQUIREMENTS)
    # The Kinesis engine, an npm package, in the version this LocalStack asks for.
    run(python, "-P", "-m", "localstack.cli.lpm", "install", "kinesis-mock")
    # The index of AWS's services: five seconds and 300 MB of each start without it.
    run(python, "-P", "-m", "localstack.aws.spec")


def main():
    if sys.version_info < (3, 11):
        sys.exit(f"python3 is Python {sys.version.split()[0]}; LocalStack is locked for 3.11 and later")
    home = Path(sys.argv[1]).resolve()
    home.mkdir(parents=True, exist_ok=True)
    scratch = os.getcwd()
    env = os.environ | {
        "TMPDIR": scratch,
        "npm_config_cache": os.path.join(scratch, "npm"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "CONFIG_DIR": scratch,
        "FILESYSTEM_ROOT": str(home / "root"),
        "OVERRIDE_IN_DOCKER": "0",  # in what it takes for a container, LocalStack ignores FILESYSTEM_ROOT
        # What builds the one requirement without a wheel is pinned too: the names for older and newer pips.
        "PIP_CONSTRAINT": str(REQUIREMENTS),
        "PIP_BUILD_CONSTRAINT": str(REQUIREMENTS),
    }
    marker = home / "installed"
    python = home / "venv" / "bin" / "python"  # a link, dangling once the Python it was made with is gone
    stamp = f"{sys.version}\n{REQUIREMENTS.read_text()}"
    with open(home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if python.exists() and marker.exists() and marker.read_text() == stamp:
            return
        marker.unlink(missing_ok=True)

        def run(*command):
            # Holding the lock too, so that a child which outlives this process still keeps others out.
            subprocess.run(command, env=env, check=True, pass_fds=[lock.fileno()])

        install(home, run)
        written = home / "installed.part"
        written.write_text(stamp)
        written.rename(marker)


if __name__ == "__main__":
    main()
