"""What has been started, so that all of it can be ended."""
import ctypes
import os
import pathlib
import signal
import subprocess
import threading

lock = threading.Lock()
over = False

# Ansible's workers leave its process group. Those that outlive it become children of ours.
PR_SET_CHILD_SUBREAPER = 36
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(args, **more):
    """Starts a process, which has nothing to do with our terminal."""
    with lock:
        check()
        return subprocess.Popen(args, start_new_session=True, **more)


def check():
    """Ends the thread when all is over."""
    if over:
        raise SystemExit


def kill(p):
    """Ends a process, if it has not ended."""
    p.kill()
    p.wait()


def end():
    """Ends all, and lets no more be started."""
    global over
    with lock:
        over = True
    while left := children():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # another thread was faster


def children():
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it is gone
        if int(fields[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found
