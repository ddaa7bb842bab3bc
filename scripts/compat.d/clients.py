"""NetApp's clients, as their users run them."""
import ast
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import processes
from agent import PATIENCE, want

HERE = pathlib.Path(__file__).parent
COLLECTIONS = None  # where netapp.ontap is


def have(module):
    return importlib.util.find_spec(module) is not None


def have_ansible():
    return have("ansible") and have("requests") and (collection() / "MANIFEST.json").exists()


def have_library():
    return have("netapp_ontap")


def versions():
    if have_ansible():
        yield f"ansible-core {importlib.metadata.version('ansible-core')}, netapp.ontap {collection_version()}"
    if have_library():
        yield f"netapp-ontap {importlib.metadata.version('netapp-ontap')}"


def collection():
    return pathlib.Path(COLLECTIONS, "ansible_collections/netapp/ontap")


def collection_version():
    return json.loads((collection() / "MANIFEST.json").read_text())["collection_info"]["version"]


def environment(agent):
    """Without the caller's own settings and proxies, and with the agent's certificate as the only good one."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and not k.startswith(("ANSIBLE_", "PYTHON"))}
    here = str(agent.dir)
    return env | {
        "REQUESTS_CA_BUNDLE": str(agent.dir.parent / "agent.crt"),
        "LC_ALL": "C.UTF-8",
        "HOME": here,
        "TMPDIR": here,
        "PYTHONDONTWRITEBYTECODE": "1",
        "ANSIBLE_HOME": here + "/ansible",
        "ANSIBLE_REMOTE_TEMP": here + "/remote",
        "ANSIBLE_CONFIG": here + "/ansible.cfg",
        "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS),
        "ANSIBLE_COLLECTIONS_ON_ANSIBLE_VERSION_MISMATCH": "ignore",
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "ANSIBLE_LOCALHOST_WARNING": "false",
        "ANSIBLE_DEPRECATION_WARNINGS": "false",
        "ANSIBLE_NOCOLOR": "true",
    }


class Run:
    """A process of a client."""

    def __init__(self, agent, args, stdin=""):
        self.process = processes.start(args, env=environment(agent), cwd=agent.dir, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT, text=True)
        self.stdin, self.output = stdin, ""

    def end(self):
        """Waits, and gives the exit code."""
        try:
            self.output, _ = self.process.communicate(self.stdin, 2 * PATIENCE)
        finally:
            processes.kill(self.process)
        return self.process.returncode


class Play(Run):
    """A playbook of ours, with one task."""

    def __init__(self, agent, playbook, role="operator", **values):
        user, secret = agent.users[role]
        values.update(agent_port=agent.port, user=user, secret=secret)
        file = agent.dir / "values.json"
        file.write_text(json.dumps(values))
        program = pathlib.Path(sys.executable).parent / "ansible-playbook"
        super().__init__(agent, [sys.executable, program, "-v", "-i", "localhost,", "-e", f"@{file}", HERE / f"{playbook}.yml"])

    def want(self, **counts):
        """Compares numbers of the recap, and gives what the module returned."""
        self.end()
        recap = re.search(r"^localhost\s*: (.*)$", self.output, re.M)
        want(recap, "no recap in\n" + self.output)
        got = {k: int(n) for k, n in re.findall(r"(\w+)=(\d+)", recap[1])}
        counts = {"changed": 0, "failed": 0, "unreachable": 0} | counts
        for name, n in counts.items():
            want(got.get(name) == n, f"{name}={got.get(name)}, not {n}, in\n{self.output}")
        result = re.search(r"^(?:ok|changed|fatal): \[localhost\](?:: FAILED!)? => (?=\{)", self.output, re.M)
        want(result, "no result in\n" + self.output)
        return json.JSONDecoder().raw_decode(self.output[result.end():])[0]

    def fails(self, *says):
        """Wants the task to fail, and its message to have all of this in it."""
        message = self.want(failed=1)["msg"]
        for s in says:
            want(s in message, f"not {s!r} but:", message)
        return message


def script(agent, text):
    """Runs a program that uses the library, and gives its output."""
    run = Run(agent, [sys.executable, "-W", "ignore", "-"], text)
    want(run.end() == 0, "the program failed:\n" + run.output)
    return run.output


def example(agent, name, replaced=()):
    """Runs an example of the manual, and gives the fields of the resource that it prints. Only the address, the credentials
    and what is in replaced are other than there."""
    text = (HERE / "examples" / name).read_text()
    user, password = agent.users["operator"]
    login = '"<mgmt-ip>", username="admin", password="password"'
    values = {login: f'"127.0.0.1", port={agent.port}, username={user!r}, password={password!r}'} | dict(replaced)
    for old, new in values.items():
        want(text.count(old) == 1, "the example has no", old)
        text = text.replace(old, new)
    return fields(script(agent, text))


def fields(printed):
    """The fields of a resource as the library prints it."""
    found = re.fullmatch(r"\w+\((.*)\)\s*", printed, re.S)
    want(found, "it printed", printed)
    return ast.literal_eval(found[1].strip())
