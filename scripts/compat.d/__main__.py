"""Runs the checks: each lane by itself and all lanes at once, because most of the time clients sleep."""
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import clients
import lanes
import processes
from agent import Failure

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"


class Report:
    """What came of the checks."""

    def __init__(self):
        self.lock = threading.Lock()
        self.count = {OK: 0, FAILED: 0, SKIPPED: 0}

    def add(self, verdict, lane, name, seconds, why=""):
        with self.lock:
            processes.check()
            self.count[verdict] += 1
            print(f"{verdict:7} {lane:8} {name} ({seconds:.0f} s)", flush=True)
            if why:
                print("        " + why.strip().replace("\n", "\n        "), flush=True)


def run(lane, work, report):
    """All checks of a lane, in order; the next ones go on where one left things."""
    name = lane.__name__.lower()
    checks = [c for c in vars(lane).values() if callable(c) and c.__doc__ and not c.__name__.startswith("_")]
    if why := lane.missing():
        for c in checks:
            report.add(SKIPPED, name, c.__doc__, 0, why)
        return
    here, begun = None, time.monotonic()
    try:
        here = lane(work)
        for c in checks:
            begun, mark = time.monotonic(), here.agent.mark()
            try:
                c(here)
                report.add(OK, name, c.__doc__, time.monotonic() - begun)
            except Exception as e:
                why = str(e) if isinstance(e, Failure) else traceback.format_exc()
                report.add(FAILED, name, c.__doc__, time.monotonic() - begun, why + "\nthe agent's log:\n" + here.agent.since(mark)[-6000:])
    except Exception:
        report.add(FAILED, name, "set up the agent", time.monotonic() - begun, traceback.format_exc())
    finally:
        try:
            if here:
                here.close()
        except Exception:
            report.add(FAILED, name, "stop the agent", 0, traceback.format_exc())


def main(collections, *names):
    clients.COLLECTIONS = collections
    known = {lane.__name__.lower(): lane for lane in lanes.ALL}
    for name in names:
        if name not in known:
            sys.exit(f"compat: there is no lane {name!r}: " + ", ".join(known))
    chosen = [known[name] for name in names] or lanes.ALL
    for sig in signal.SIGINT, signal.SIGTERM:
        signal.signal(sig, lambda number, _: sys.exit(128 + number))
    work = tempfile.mkdtemp(prefix="compat")
    report, threads = Report(), []
    try:
        subprocess.run(["go", "build", "-o", work + "/bin/", "./cmd/slotfetchd", "./cmd/slotfetch"], check=True)
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
                        "subjectAltName=IP:127.0.0.1", "-keyout", work + "/agent.key", "-out", work + "/agent.crt"], check=True, capture_output=True)
        print("clients:", ", ".join(clients.versions()), flush=True)
        threads = [threading.Thread(target=run, args=(lane, pathlib.Path(work), report), daemon=True) for lane in chosen]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        processes.end()
        for t in threads:
            t.join(10)  # of a lane that was interrupted
        shutil.rmtree(work, ignore_errors=True)
    n = report.count
    print(f"{n[OK]} passed, {n[FAILED]} failed, {n[SKIPPED]} skipped")
    return 1 if n[FAILED] else 77 if n[SKIPPED] else 0


sys.exit(main(*sys.argv[1:]))
