"""build/venv, the Python environment of scripts that draw: made the first time one of them needs a package."""
import fcntl
import importlib.util
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
VENV = ROOT / "build" / "venv"
PYTHON = VENV / "bin" / "python"


def fail(text):
    print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr)
    sys.exit(2)


def runs(*arguments):
    """True where the environment's Python ends well with these arguments."""
    try:
        return subprocess.run([PYTHON, *arguments], capture_output=True).returncode == 0
    except OSError:
        return False


def last_line(result):
    lines = (result.stderr or result.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"status {result.returncode}"


def make(package):
    """Makes the environment where it is missing or broken, and installs the package into it."""
    if not runs("-m", "pip", "--version"):
        print(f"making {VENV}", file=sys.stderr)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True)
        if made.returncode != 0 or not runs("-m", "pip", "--version"):
            fail(f"`python3 -m venv` failed ({last_line(made)}); on Debian: apt-get install python3-venv")
    print(f"installing {package} into {VENV}", file=sys.stderr)
    installed = subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
                               capture_output=True, text=True)
    if installed.returncode != 0 or not runs("-c", f"import {package}"):
        fail(f"{package} could not be installed with pip ({last_line(installed)}); with a network connection this works "
             f"by itself, without one install {package} for {sys.executable}")


def require(package):
    """Returns where this Python has the package, else starts the script anew with build/venv's Python."""
    if importlib.util.find_spec(package):
        return
    if not runs("-c", f"import {package}"):
        try:
            VENV.parent.mkdir(parents=True, exist_ok=True)
            lock = open(VENV.parent / "venv.lock", "w")
        except OSError as error:
            fail(f"{VENV} cannot be made: {error.strerror}")
        with lock:  # two scripts at a time: the second waits and finds it made
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not runs("-c", f"import {package}"):
                make(package)
    os.execv(PYTHON, [str(PYTHON), *sys.orig_argv[1:]])
