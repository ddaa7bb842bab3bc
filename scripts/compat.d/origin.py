"""Servers of images on the loopback, over HTTP and FTP, which count what they are asked for."""
import base64
import collections
import hashlib
import http.server
import logging
import struct
import threading

try:
    import pyftpdlib.authorizers
    import pyftpdlib.handlers
    import pyftpdlib.servers
except ImportError:
    pyftpdlib = None

SIZE = 1_000_000


def image(volume, seed=""):
    """An image with the outside of an ISO 9660 file, whose volume id becomes the version; seed makes it another one."""
    blocks = SIZE // 2048 + 1
    data = bytearray(hashlib.shake_128(f"{volume} {seed}".encode()).digest(blocks * 2048))
    pvd = bytearray(2048)
    pvd[0:7] = b"\x01CD001\x01"
    pvd[40:72] = volume.encode().ljust(32)
    pvd[80:88] = struct.pack("<I", blocks) + struct.pack(">I", blocks)
    pvd[128:132] = struct.pack("<H", 2048) + struct.pack(">H", 2048)
    data[16 * 2048:17 * 2048] = pvd
    return bytes(data)


def sidecar(data, name):
    return f"{hashlib.sha256(data).hexdigest()}  {name}\n".encode()


class Origin:
    """An HTTP server. Each image has its NAME.sha256 beside it."""

    def __init__(self):
        self.files = {}   # by path
        self.gates = {}   # by path: half of the file is sent at once, the rest when the event is set
        self.logins = {}  # by path: user and password, without which there is nothing
        self.count = collections.Counter()  # GET, by path
        origin = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                origin.answer(self)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, path, data, login=None, gated=False):
        """Serves an image and gives its URL."""
        self.files[path] = data
        self.files[path + ".sha256"] = sidecar(data, path.rsplit("/", 1)[1])
        if login:
            self.logins[path] = self.logins[path + ".sha256"] = login
        if gated:
            self.gates[path] = threading.Event()
        return self.base + path

    def answer(self, request):
        path = request.path
        data, status = self.files.get(path), 200
        login = self.logins.get(path)
        if login and request.headers.get("Authorization") != "Basic " + base64.b64encode(":".join(login).encode()).decode():
            data, status = b"", 401
        elif data is None:
            data, status = b"", 404
        if request.command == "GET":
            self.count[path] += 1
        request.send_response(status)
        if status == 401:
            request.send_header("WWW-Authenticate", 'Basic realm="images"')
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command == "HEAD":
            return
        half = len(data) // 2 if path in self.gates else 0
        try:
            if half:
                request.wfile.write(data[:half])
                request.wfile.flush()
                self.gates[path].wait()
            request.wfile.write(data[half:])
        except OSError:
            pass  # the agent has hung up

    def close(self):
        for gate in self.gates.values():
            gate.set()
        self.server.shutdown()
        self.server.server_close()


class FTPOrigin:
    """An FTP server of the files in a directory, for those who know the password."""

    user, password = "firmware", "p@ss:w/rd"

    def __init__(self, directory):
        logging.basicConfig(level=logging.WARNING)  # else the server tells of each command
        self.count = collections.Counter()  # files sent whole, by name
        authorizer = pyftpdlib.authorizers.DummyAuthorizer()
        authorizer.add_user(self.user, self.password, directory)
        origin = self

        class Handler(pyftpdlib.handlers.FTPHandler):
            auth_failed_timeout = 0

            def on_file_sent(self, file):
                origin.count[file.rsplit("/", 1)[1]] += 1

        Handler.authorizer = authorizer
        self.server = pyftpdlib.servers.FTPServer(("127.0.0.1", 0), Handler)
        self.base = f"ftp://127.0.0.1:{self.server.address[1]}"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.open = True
        self.thread.start()

    def serve(self):
        while self.open:
            self.server.ioloop.loop(timeout=0.2, blocking=False)

    def close(self):
        self.open = False
        self.thread.join()
        self.server.close_all()
