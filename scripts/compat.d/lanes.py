"""The checks. A lane has an agent of its own; its checks run in the order in which they are written, each on what the ones
before have left, and are named by their first lines."""
import hashlib
import urllib.parse

import clients
import origin
from agent import Agent, Machine, until, want
from clients import Play, example, script

DOWNLOAD, JOBS, PACKAGES, SOFTWARE = "/api/cluster/software/download", "/api/cluster/jobs", "/api/cluster/software/packages", "/api/cluster/software"


def is_in_slot(agent, data):
    """Tells whether a package is this image, byte for byte."""
    for p in agent.call("GET", PACKAGES)["records"]:
        if (agent.state / "slots" / str(p["slot_id"]) / "image").read_bytes() == data:
            return True
    return False


class Lane:
    """An agent and a server of images."""

    def __init__(self, work):
        self.origin = origin.Origin()
        self.agent = self._agent(work)

    @classmethod
    def _agent(cls, work):
        return Agent(work, cls.__name__.lower())

    @staticmethod
    def missing():
        return "" if clients.have_ansible() else "Ansible or netapp.ontap could not be installed"

    def close(self):
        self.origin.close()
        self.agent.close()
        ours = ('msg="fetch failed"', 'msg="slot is degraded: its image has changed"')  # which these lanes bring about
        errors = [line for line in self.agent.since(0).splitlines() if "level=ERROR" in line and not any(w in line for w in ours) or "panic" in line]
        want(not errors, *errors)

    def _play(self, version, url=None, **more):
        return Play(self.agent, "software_update", version=version, **({"url": url} if url else {}), **more)

    def _posted(self, mark, state="running"):
        """Waits until a client has begun a download, and gives the job's uuid."""
        until("the client's POST", lambda: f"POST {DOWNLOAD} 202" in self.agent.requests(mark))
        job, = until("a job that is " + state, lambda: self.agent.jobs(state=state))
        return job["uuid"]

    def _gated(self, path, version):
        return self.origin.add(path, origin.image(version), gated=True)


class Update(Lane):
    @classmethod
    def _agent(cls, work):
        return Agent(work, "update", "[fetch]\nworkers = 1\n")

    def not_listed(self):
        "software_update, package not listed: changed=1"
        data = origin.image("9.16.1")
        self._play("9.16.1", self.origin.add("/9161.iso", data)).want(changed=1)
        want(self.agent.packages() == ["9.16.1"] and is_in_slot(self.agent, data), "it is not in a slot")
        want(self.origin.count["/9161.iso"] == 1, "it was downloaded", self.origin.count["/9161.iso"], "times")

    def listed(self):
        "software_update, package listed: changed=0, no POST"
        mark = self.agent.mark()
        self._play("9.16.1", self.origin.base + "/9161.iso").want(changed=0)
        requests = self.agent.requests(mark)
        want(requests and all(r.startswith("GET ") and r.endswith(" 200") for r in requests), requests)

    def dead_url(self):
        "software_update, dead URL: failed=1 with the job's message"
        message = self._play("9.17.1", self.origin.base + "/nothing.iso").fails()
        job = self.agent.jobs(state="failure")[-1]
        want(job["message"] and job["message"] in message, f"not {job['message']!r} in: {message}")

    def gone(self):
        "software_update, image gone, its checksum still there: failed=1 with the job's message"
        url = self.origin.add("/gone.iso", origin.image("gone"))
        del self.origin.files["/gone.iso"]
        message = self._play("9.17.1", url).fails()
        job = self.agent.jobs(state="failure")[-1]
        want(job["code"] == 10551885 and job["message"] and job["message"] in message, f"not {job} in: {message}")

    def other_content(self):
        "software_update, same name and version, other content: failed=1, not taken for there already"
        url = self.origin.add("/other/9161.iso", origin.image("9.16.1", "other"))
        self._play("9.16.1P1", url).fails("Version 9.16.1 is already in slot 1 with other content")
        want(self.agent.packages() == ["9.16.1"], self.agent.packages())

    def no_digest(self):
        "software_update, no checksum beside the image: failed=1, the image is not asked for"
        url = self.origin.add("/bare.iso", origin.image("9.15.1"))
        del self.origin.files["/bare.iso.sha256"]
        self._play("9.15.1", url).fails("No SHA-256 for bare.iso", "SHA256SUMS", "ontap.require_checksum")
        want(self.origin.count["/bare.iso"] == 0, "it was asked for")

    def shared(self):
        "software_update, URL being fetched already: changed=1, one download"
        data = origin.image("9.17.1")
        url = self.origin.add("/9171.iso", data, gated=True)
        body = {"url": url, "checksum": {"sha256": hashlib.sha256(data).hexdigest()}}
        key = self.agent.call("POST", "/api/firmware/fetch", body, 202)["key"]
        until("the download", lambda: self.origin.count["/9171.iso"])
        mark = self.agent.mark()
        play = self._play("9.17.1", url)
        uuid = self._posted(mark)
        want(uuid == key, "another job was begun")
        self.origin.gates["/9171.iso"].set()
        play.want(changed=1)
        want(self.origin.count["/9171.iso"] == 1, "it was downloaded", self.origin.count["/9171.iso"], "times")
        want(f"GET {JOBS}/{key} 200" in self.agent.requests(mark), "its job was not looked at")

    def queued(self):
        "software_update, another download under way: waits its turn, changed=1"
        self.agent.call("POST", DOWNLOAD, {"url": self._gated("/first.iso", "first")}, 202)
        until("the download", lambda: self.origin.count["/first.iso"])
        mark = self.agent.mark()
        play = self._play("9.17.2", self.origin.add("/9172.iso", origin.image("9.17.2")))
        uuid = self._posted(mark, "queued")
        until("the client's look at the job", lambda: f"GET {JOBS}/{uuid} 200" in self.agent.requests(mark))
        want(self.agent.call("GET", f"{JOBS}/{uuid}")["state"] == "queued", "it is not queued")
        self.origin.gates["/first.iso"].set()
        play.want(changed=1)
        want("9.17.2" in self.agent.packages(), self.agent.packages())

    def cancelled(self):
        "software_update, cancelled meanwhile: failed=1, says by whom"
        mark = self.agent.mark()
        play = self._play("9.18.1", self._gated("/9181.iso", "9.18.1"))
        uuid = self._posted(mark)
        self.agent.call("DELETE", "/api/firmware/fetch/" + uuid)
        job = self.agent.call("GET", f"{JOBS}/{uuid}")
        want(job["state"] == "failure" and "cancelled by" in job["message"], job)
        play.fails(job["message"])

    def deleted(self):
        "software_update, job deleted meanwhile: failed=1"
        mark = self.agent.mark()
        play = self._play("9.18.1", self._gated("/deleted.iso", "9.18.1"))
        uuid = self._posted(mark)
        for _ in "cancelled", "pruned":
            self.agent.call("DELETE", "/api/firmware/fetch/" + uuid)
        play.fails("entry doesn't exist")

    def userinfo(self):
        "software_update, credentials in the URL: changed=1, they are nowhere"
        user, password = "builder", "a p@ss/word"
        url = self.origin.add("/private.iso", origin.image("9.19.1"), login=(user, password))
        quoted = urllib.parse.quote(password, safe="")
        self._play("9.19.1", url.replace("://", f"://{user}:{quoted}@")).want(changed=1)
        for place, text in (("log", self.agent.since(0)), ("jobs", str(self.agent.jobs())), ("fetches", str(self.agent.call("GET", "/api/firmware/fetch")))):
            for secret in password, quoted:
                want(secret not in text, "the password is in the", place)

    def wrong_password(self):
        "software_update, wrong password of ours: failed=1"
        self.agent.users["nobody"] = ("nobody", "not the password")
        self._play("9.16.1", role="nobody", state="absent").fails("User is not authorized.")

    def absent(self):
        "software_update, state absent: changed=1"
        self._play("9.17.1", state="absent").want(changed=1)
        want("9.17.1" not in self.agent.packages(), "it is still there")

    def still_absent(self):
        "software_update, state absent again: changed=0"
        self._play("9.17.1", state="absent").want(changed=0)


class Upgrade(Lane):
    @classmethod
    def _agent(cls, work):
        return Machine(work, "upgrade")

    def __init__(self, work):
        super().__init__(work)
        data = origin.image("9.15.1")
        slot = self.agent.fetch(self.origin.add("/9151.iso", data), hashlib.sha256(data).hexdigest())
        self.agent.reboot(slot)

    def _update(self, version, url=None, **more):
        return self._play(version, url, role="admin", download_only=False, patience=60, **more)

    def full(self):
        "software_update, full update with validation and reboot: changed=1, ends in the DELETE"
        mark = self.agent.mark()
        result = self._update("9.16.1", self.origin.add("/9161.iso", origin.image("9.16.1")), validate=True).want(changed=1)
        if self.agent.error:
            raise self.agent.error
        want(result["validation_reports_after_download"] == [], result)
        software = self.agent.call("GET", SOFTWARE)
        want((software["version"], software["state"]) == ("9.16.1", "completed"), software)
        ran = self.agent.ran.read_text().split("\n")
        want(ran == ["activate 2", "reboot 2", "health 2", "confirm 2", ""], ran)
        did = [r for r in self.agent.requests(mark) if not r.startswith("GET ")]
        want(did == [f"POST {DOWNLOAD} 202", f"PATCH {SOFTWARE} 202", f"PATCH {SOFTWARE} 202", f"DELETE {PACKAGES}/9.16.1 200"], did)
        want(is_in_slot(self.agent, self.origin.files["/9151.iso"]), "the version before is not there to go back to")

    def full_again(self):
        "software_update, full update to what runs: changed=0"
        mark = self.agent.mark()
        self._update("9.16.1", self.origin.base + "/9161.iso").want(changed=0)
        want(all(r.startswith("GET ") for r in self.agent.requests(mark)), self.agent.requests(mark))

    def invalid(self):
        "software_update, full update to a damaged package: failed=1, says why"
        data = origin.image("9.17.1")
        slot = self.agent.fetch(self.origin.add("/9171.iso", data), hashlib.sha256(data).hexdigest())
        image = self.agent.state / "slots" / str(slot) / "image"
        image.chmod(0o600)
        with open(image, "r+b") as f:
            f.seek(500_000)
            f.write(b"damaged")
        self._update("9.17.1").fails("Error updating software", "Image digest")
        want(self.agent.call("GET", SOFTWARE)["version"] == "9.16.1", "it was activated")

    def absent(self):
        "software_update, state absent for the version before: changed=1"
        self._play("9.15.1", state="absent").want(changed=1)
        want("9.15.1" not in self.agent.packages(), "it is still there")

    def still_absent(self):
        "software_update, state absent again: changed=0"
        self._play("9.15.1", state="absent").want(changed=0)

    def history(self):
        "rest_info, history after the update"
        info = Play(self.agent, "rest_info", subsets=["cluster/software/history"]).want(changed=0)["ontap_info"]
        records = info["cluster/software/history"]["records"]
        want([(r["from_version"], r["to_version"], r["state"]) for r in records] == [("9.15.1", "9.16.1", "successful")], records)


class Firmware(Lane):
    @staticmethod
    def missing():
        return Lane.missing() or ("" if origin.pyftpdlib else "pyftpdlib could not be installed")

    def __init__(self, work):
        super().__init__(work)
        www = work / "www"
        www.mkdir()
        self.data = origin.image("SP_5.1")
        (www / "SP_FW.iso").write_bytes(self.data)
        (www / "SP_FW.iso.sha256").write_bytes(origin.sidecar(self.data, "SP_FW.iso"))
        self.ftp = origin.FTPOrigin(str(www))

    def close(self):
        self.ftp.close()
        super().close()

    def _play(self):
        Play(self.agent, "firmware_upgrade", url=self.ftp.base + "/SP_FW.iso", server_user=self.ftp.user, server_secret=self.ftp.password).want(changed=1)
        want(is_in_slot(self.agent, self.data), "it is not in a slot")
        want(self.ftp.count["SP_FW.iso"] == 1, "it was downloaded", self.ftp.count["SP_FW.iso"], "times")

    def once(self):
        "firmware_upgrade, FTP with credentials: changed=1"
        self._play()

    def twice(self):
        "firmware_upgrade again: changed=1, not downloaded again"
        self._play()
        want(self.ftp.password not in self.agent.since(0), "the password is in the log")


class Info(Lane):
    def subsets(self):
        "rest_info, all that there is of cluster: failed=0"
        names = ["cluster", "cluster/nodes", "cluster/jobs", "cluster/software", "cluster/software/download", "cluster/software/packages",
                 "cluster/software/history"]
        info = Play(self.agent, "rest_info", subsets=names).want(changed=0)["ontap_info"]
        want(sorted(info) == sorted(names) and all(isinstance(i, dict) and i for i in info.values()), info)
        want(info["cluster"]["version"]["generation"] == 9 and info["cluster/nodes"]["num_records"] == 1, info)
        want(info["cluster/software"]["nodes"][0]["name"] == info["cluster"]["name"], info)
        want(info["cluster/software/download"]["state"] == "not_started", info)

    def unknown_subset(self):
        "rest_info, a subset that we do not have beside one that we have: failed=0"
        info = Play(self.agent, "rest_info", subsets=["storage/disks", "cluster/counter/tables", "cluster"]).want(changed=0)["ontap_info"]
        want(info["storage/disks"] == info["cluster/counter/tables"] == "API not found", info)
        want(info["cluster"]["version"]["generation"] == 9, info)

    def post(self):
        "restit, POST of a download: changed=1"
        result = Play(self.agent, "restit", url=self.origin.add("/a.iso", origin.image("a"))).want(changed=1)
        want(result["status_code"] == 202, result)
        job = result["response"]["job"]
        until("the job", lambda: self.agent.call("GET", job["_links"]["self"]["href"])["state"] == "success")

    def post_and_wait(self):
        "restit, POST of a download, waits for completion: changed=1"
        Play(self.agent, "restit", url=self.origin.add("/b.iso", origin.image("b")), wait=True).want(changed=1)
        want(self.agent.packages() == ["a", "b"], self.agent.packages())

    def pages(self):
        "rest_info, jobs in pages of one: all of them"
        mark, jobs = self.agent.mark(), self.agent.jobs()
        got = Play(self.agent, "rest_info", subsets=["cluster/jobs"], page=1).want(changed=0)["ontap_info"]["cluster/jobs"]
        want([j["uuid"] for j in got["records"]] == [j["uuid"] for j in jobs] and len(jobs) == 2, got)
        want(self.agent.requests(mark).count(f"GET {JOBS} 200") == 2, self.agent.requests(mark))

    def post_dead(self):
        "restit, POST of a dead URL, waits for completion: failed=1"
        message = Play(self.agent, "restit", url=self.origin.base + "/nothing.iso", wait=True).want(failed=1)
        job = self.agent.jobs(state="failure")[-1]
        want(job["message"] and job["message"] in str(message), message)


LOGIN = """
import json
from netapp_ontap import HostConnection, NetAppRestError
from netapp_ontap import resources, utils
with HostConnection("127.0.0.1", port={port}, username={user!r}, password={password!r}, poll_interval=1):
"""


class Library(Lane):
    @staticmethod
    def missing():
        return "" if clients.have_library() else "netapp-ontap could not be installed"

    def _script(self, text, **values):
        """Runs a program with a connection that verifies our certificate."""
        user, password = self.agent.users["operator"]
        text = LOGIN.format(port=self.agent.port, user=user, password=password) + "".join("    " + line + "\n" for line in text.strip().splitlines())
        return script(self.agent, "\n".join(f"{k} = {v!r}" for k, v in values.items()) + text)

    def download_example(self):
        "netapp-ontap, the manual's example of a download"
        data = origin.image("9.16.1")
        url = self.origin.add("/package", data, login=("admin", "*********"))
        got = example(self.agent, "download", {"http://server/package": url})
        want((got["state"], got["code"], got["message"]) == ("success", 0, "Package download complete"), got)
        want(is_in_slot(self.agent, data) and self.origin.count["/package"] == 1, "it is not in a slot")

    def job_example(self):
        "netapp-ontap, the manual's example of a job"
        uuid = self.agent.jobs()[0]["uuid"]
        got = example(self.agent, "job", {"f587d316-5feb-11e8-b0e0-005056956dfc": uuid})
        for name, value in {"message": "success", "code": 0, "state": "success", "uuid": uuid, "description": "POST " + DOWNLOAD,
                            "_links": {"self": {"href": f"{JOBS}/{uuid}"}}}.items():
            want(got[name] == value, name, got)

    def progress_example(self):
        "netapp-ontap, the manual's example of the progress"
        url = self._gated("/slow.iso", "slow")
        self.agent.call("POST", DOWNLOAD, {"url": url}, 202)
        until("the download", lambda: self.origin.count["/slow.iso"])
        got = example(self.agent, "progress")
        want((got["state"], got["code"]) == ("running", 10551382) and got["message"].startswith("Package download in progress"), got)
        self.origin.gates["/slow.iso"].set()
        until("its end", lambda: not self.agent.jobs(state="running"))

    def poll(self):
        "netapp-ontap, POST without waiting, then poll: success"
        self._script("""
d = resources.SoftwarePackageDownload(url=URL)
r = d.post(poll=False)
assert r.http_response.status_code == 202, r
r = r.poll()
assert not r.is_err, r
""", URL=self.origin.add("/polled.iso", origin.image("polled")))
        want("polled" in self.agent.packages(), self.agent.packages())

    def failure(self):
        "netapp-ontap, a download fails: NetAppRestError with the job's message"
        for timeout in 0, 30:
            said = self._script("""
try:
    resources.SoftwarePackageDownload(url=URL).post(return_timeout=TIMEOUT)
except NetAppRestError as e:
    print(e)
else:
    raise SystemExit("it did not fail")
""", URL=self.origin.base + "/nothing.iso", TIMEOUT=timeout)
            job = self.agent.jobs(state="failure")[-1]
            want(job["message"] and job["message"] in said, f"not {job['message']!r} in: {said}")

    def collections(self):
        "netapp-ontap, all that can be read"
        self._script("""
assert resources.Cluster().get().http_response.status_code == 200
nodes = list(resources.Node.get_collection(fields="*"))
assert len(nodes) == 1, nodes
software = resources.Software()
software.get(fields="*")
assert software.state == "completed", software
jobs = list(resources.Job.get_collection(max_records=2))
assert len(jobs) == JOBS, jobs
assert len(list(resources.Job.get_collection(state="failure"))) == 2
versions = [p.version for p in resources.SoftwarePackage.get_collection(return_timeout=15)]
assert versions == ["9.16.1", "slow", "polled"], versions
package = resources.SoftwarePackage(version="9.16.1")
package.get()
assert list(resources.SoftwareHistory.get_collection()) == []
""", JOBS=len(self.agent.jobs()))

    def upload(self):
        "netapp-ontap, upload of a file"
        data = origin.image("uploaded")
        file = self.agent.dir / "uploaded.iso"
        file.write_bytes(data)
        self._script('resources.Software().upload(file=FILE)', FILE=f"@{file}")
        want(is_in_slot(self.agent, data), "it is not in a slot")

    def delete(self):
        "netapp-ontap, DELETE of a package"
        self._script("""resources.SoftwarePackage(version="9.16.1").delete()""")
        want("9.16.1" not in self.agent.packages(), "it is still there")


ALL = [Upgrade, Update, Firmware, Library, Info]
