# Serves sys.argv[1] to anonymous users; with a PEM file as sys.argv[2] over explicit TLS.
# Says its address in the first line, and "ended" for each session that is over.
import logging
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

logging.disable(logging.CRITICAL)
directory, pem = sys.argv[1], sys.argv[2]
base = FTPHandler
if pem:
    from pyftpdlib.handlers import TLS_FTPHandler as base


class Handler(base):
    def on_disconnect(self):
        print("ended")


Handler.authorizer = DummyAuthorizer()
Handler.authorizer.add_anonymous(directory)
if pem:
    Handler.certfile = pem
    Handler.tls_control_required = True
    Handler.tls_data_required = True
server = FTPServer(("127.0.0.1", 0), Handler)
print("%s:%d" % server.address)
server.serve_forever()
