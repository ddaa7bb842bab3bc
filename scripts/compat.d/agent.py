"""A real slotfetchd on the loopback, and a machine for it that can be rebooted."""
import http.client
import json
import pathlib
import random
import re
import signal
import socket
import subprocess
import threading
import time

import processes

PATIENCE = 120  # seconds; the machine may be busy


class Failure(Exception):
    """A check that did not pass."""


def want(true, *what):
    if not true:
        raise Failure(" ".join(str(w) for w in what))


def until(what, ready):
    """Waits for ready to give something."""
    end = time.monotonic() + PATIENCE
    while True:
        if found := ready():
            return found
        want(time.monotonic() < end, "waited in vain for", what)
        processes.check()
        time.sleep(0.05)


def free_port():
    """A port that nobody is given by chance, so that it is there again when the agent is."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Local(http.client.HTTPConnection):
    """HTTP over the agent's local socket, which needs no password."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Agent:
    """An agent with a state directory of its own, which outlives the process."""

    def __init__(self, work, name, more=""):
        self.dir = pathlib.Path(work, name)
        self.dir.mkdir()
        self.program = str(pathlib.Path(work, "bin", "slotfetchd"))
        self.port, self.state, self.socket = free_port(), self.dir / "state", str(self.dir / "s")
        self.log = self.dir / "log"
        self.log.touch()
        (self.dir / "ansible.cfg").touch()  # so that Ansible does not look for another one
        self.config = self.dir / "config.toml"
        self.config.write_text(f"""state_dir = "{self.state}"
[api]
listen = "127.0.0.1:{self.port}"
tls_cert = "{work}/agent.crt"
tls_key = "{work}/agent.key"
[local]
socket = "{self.socket}"
[slots]
count = 20
[egress]
allow = ["127.0.0.0/8"]
{more}""")
        self.process = None
        self.start()
        # Some clients send other characters as UTF-8, some as Latin-1.
        self.users = {role: (role + "1", f"Paßwort für {role}") for role in ("admin", "operator")}
        for role, (user, password) in self.users.items():
            self.command("user", "add", "--role", role, user, stdin=password + "\n")

    def command(self, *args, stdin=""):
        subprocess.run([self.program, "--config", self.config, *args], input=stdin, text=True, check=True, capture_output=True, timeout=PATIENCE)

    def start(self):
        seen = self.mark()
        with open(self.log, "a") as log:
            self.process = processes.start([self.program, "--config", self.config, "serve"], stderr=log)

        def ready():
            want(self.process.poll() is None, "the agent did not start")
            return 'msg="agent ready"' in self.since(seen)
        until("the agent", ready)

    def stop(self):
        process, self.process = self.process, None
        if not process:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(PATIENCE)
        finally:
            processes.kill(process)
        want(code == 0, "the agent ended with code", code)

    def close(self):
        self.stop()

    # The log tells who asked what.

    def mark(self):
        """Where the log ends now."""
        return self.log.stat().st_size

    def since(self, mark):
        with open(self.log) as f:
            f.seek(mark)
            return f.read()

    def requests(self, mark):
        """What clients asked since then over TCP: "METHOD path status" each."""
        found = re.findall(r"msg=request method=(\S+) path=(\S+) status=(\d+) .* remote=127\.0\.0\.1:", self.since(mark))
        return [" ".join(f) for f in found]

    # What we do ourselves goes over the local socket.

    def call(self, method, path, body=None, status=200):
        c = Local(self.socket)
        try:
            c.request(method, path, json.dumps(body) if body is not None else None)
            reply = c.getresponse()
            text = reply.read().decode()
        finally:
            c.close()
        want(reply.status == status, method, path, "was answered with", reply.status, text)
        return json.loads(text)

    def fetch(self, url, sha256):
        """Fetches an image over the other dialect and gives the slot."""
        key = self.call("POST", "/api/firmware/fetch", {"url": url, "checksum": {"sha256": sha256}}, 202)["key"]

        def ended():
            body = self.call("GET", f"/api/firmware/fetch/{key}")["body"]
            return body if body["end_time"] else None
        body = until("the fetch of " + url, ended)
        want(body["status"] == "finished", body)
        return body["slot_id"]

    def jobs(self, **query):
        return self.call("GET", "/api/cluster/jobs?" + "&".join(f"{k}={v}" for k, v in query.items()))["records"]

    def packages(self):
        return [p["version"] for p in self.call("GET", "/api/cluster/software/packages")["records"]]


class Machine(Agent):
    """An agent on a machine with a boot loader. In place of systemd it starts the root side, and it reboots by itself."""

    def __init__(self, work, name):
        self.boots = pathlib.Path(work, name + "-boots")
        hooks = self.boots / "hooks"
        hooks.mkdir(parents=True)
        for hook in ("activate", "confirm", "rollback", "health", "reboot"):
            file = hooks / hook
            file.write_text(f'#!/bin/sh\necho "{hook} $SLOTFETCH_SLOT" >>"{self.boots}/ran"\n')
            file.chmod(0o755)
        self.ran = self.boots / "ran"
        self.ran.touch()
        self.number = 0
        self.down = 12  # seconds that a reboot takes; clients have to miss the agent at least once
        self.boot("")
        super().__init__(work, name, f"""[activate]
hooks = "{hooks}"
state_dir = "{self.boots}/state"
boot_id_file = "{self.boots}/boot_id"
cmdline_file = "{self.boots}/cmdline"
health_timeout = "30s"
""")
        self.open, self.error = True, None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def boot(self, slot):
        self.number += 1
        (self.boots / "boot_id").write_text(f"00000000-0000-4000-8000-{self.number:012}\n")
        (self.boots / "cmdline").write_text("ro quiet" + (f" slotfetch.slot={slot}" if slot else "") + "\n")

    def reboot(self, slot, down=0):
        self.stop()
        time.sleep(down)
        self.boot(slot)
        self.start()

    def run(self):
        seen = 0
        try:
            while self.open:
                if (self.state / "activate" / "request.json").exists():
                    self.command("activate")
                ran = self.ran.read_text().splitlines()
                for line in ran[seen:]:
                    if line.startswith("reboot "):
                        self.reboot(line.split()[1], self.down)
                seen = len(ran)
                time.sleep(0.1)
        except Exception as e:  # the check that runs tells
            self.error = e

    def close(self):
        self.open = False
        self.thread.join()
        self.stop()
