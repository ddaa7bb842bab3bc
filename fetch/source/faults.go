package source

import (
	"slices"
	"strings"
)

// Fault is a kind of failure: one row of the table from which the error of a fetch, its details, the logs, the metrics
// and docs/errors.md take their words.
type Fault struct {
	// Code is stable, for scripts, and the anchor in docs/errors.md. One that ends in xx is for all codes of that hundred
	// that have no row of their own, in xxx for all the rest.
	Code  string
	Class Class
	// Meaning is one general sentence.
	Meaning string
	// Remedy is what an admin can do; empty only where nothing but waiting helps.
	Remedy string
}

const (
	journal   = "The agent's journal has the details."
	emptySlot = "Delete one with DELETE /api/firmware/slots/<slot_id> and start again."
	otherSlot = "Choose another or leave out slot_id."
	readIt    = "Give credentials that may read it."
	login     = "Check the credentials."
	// elsewhere is for a server that will not do.
	elsewhere = "Use another server or a mirror."
	checkURL  = "Check the URL."
	forbidden = "Use another server or a mirror, or have the redirect corrected."
)

// faults are all codes, by what is at fault. None changes its meaning.
var faults = []Fault{
	// The connection.
	{"dns", Temporary, "The name of the server could not be resolved.", "Check the URL and the resolver."},
	{"refused", Temporary, "Nothing listens on the port of the server, or a firewall refuses.", "Check the port of the URL, and whether the server runs."},
	{"unreachable", Temporary, "There is no way from the box to the server.", "Check the URL, and the network of the box."},
	{"connect", Temporary, "The connection to the server could not be made.", "Check the URL, and whether the server runs."},
	{"connection", Temporary, "The connection failed in a way that has no code of its own.", ""},
	{"broken", Temporary, "The connection ended before all bytes had come.", ""},
	{"stalled", Temporary, "The server sent nothing for the time that fetch.idle_timeout gives it.", ""},
	{"low_speed", Temporary, "The transfer was too slow to be one.", ""},
	{"descriptors", Temporary, "The box has no file descriptor left for another connection.", "Raise LimitNOFILE of slotfetchd.service if it happens again."},
	{"egress", Human, "The address is one that the agent does not connect to by itself: the box, its link, or a metadata service.",
		"If it should be, add it to egress.allow in the agent's configuration and restart the agent."},
	{"egress_deny", Human, "The address is one that the agent's configuration forbids.",
		"Take it out of egress.deny and restart the agent if it should be allowed."},

	// TLS.
	{"no_tls", Human, "The port of the server does not speak TLS.", "Check scheme and port of the URL."},
	{"tls", Human, "The server broke off the TLS handshake.", "Look into the log of the server; it may want a client certificate."},
	{"tls_version", Human, "The server speaks only versions of TLS that are not safe any more.", "Have TLS 1.2 or newer enabled on the server, or use another."},
	{"tls_timeout", Temporary, "The TLS handshake took too long.", ""},
	{"only_http2", Permanent, "The server speaks HTTP/2 only; the agent speaks HTTP/1.1.", "Have HTTP/1.1 enabled on the server, or use another."},
	{"certificate", Human, "The certificate of the server did not verify, and had to.", "Give tls.ca, or tls.verify=false."},
	{"certificate_changed", Temporary, "Of several connections to one server, a later one had a certificate that did not verify.", ""},
	{"ca", Human, "tls.ca of the request cannot be used.", "Give the PEM text of the CA's certificate and start again."},

	// HTTP.
	{"http_401", Human, "The server wants credentials.", readIt},
	{"http_403", Human, "The server does not let this user, or this box, have the file.", readIt},
	{"http_404", Permanent, "The server has no such file.", checkURL},
	{"http_407", Human, "The proxy wants credentials.", "Set them in the agent's configuration."},
	{"http_408", Temporary, "The server gave up waiting for the request.", ""},
	{"http_410", Permanent, "The server has the file no longer.", checkURL},
	{"http_429", Temporary, "The server is asked too often, and says when to ask again.", ""},
	{"http_2xx", Permanent, "The server answered with success, but without a file.", checkURL},
	{"http_4xx", Permanent, "The server refuses the request.", "Check the URL, and look into the log of the server."},
	{"http_5xx", Temporary, "The server has trouble of its own.", ""},
	{"http_xxx", Permanent, "The server gave an answer that means nothing here.", elsewhere},
	{"range", Permanent, "The server has no such part of the file, and would not send the whole.", elsewhere},
	{"bad_resume", Permanent, "The server sent another part of the file than was asked for, or more of it.", elsewhere},
	{"too_long", Permanent, "The server sent more bytes than it had announced.", elsewhere},
	{"encoding", Permanent, "The server sent the file in a compressed form that was not asked for.", "Have compression switched off for this file, or use another server."},
	{"html", Permanent, "The server sent an HTML page where the image should be.", "Check the URL, and whether a login page is in the way."},
	{"no_end", Human, "The server does not say how long the file is, so that a connection that breaks looks like its end, and nobody said what the SHA-256 is.",
		"Give checksum.sha256, publish a checksum file beside the image, or use another server."},
	{"malformed_answer", Permanent, "What the server sent is against the protocol.", "Check the port of the URL, or use another server."},
	{"redirect", Permanent, "A redirect without a target.", forbidden},
	{"redirects", Permanent, "Too many redirects, one after another.", "Give the URL that they lead to."},
	{"redirect_login", Human, "A redirect leads to another server that wants credentials; those of the request are not sent there.",
		"Give the URL that it leads to, with its credentials."},
	{"redirect_scheme", Permanent, "A redirect to something other than http and https.", forbidden},
	{"redirect_downgrade", Permanent, "A redirect from https to http.", forbidden},
	{"proxy", Human, "The proxy does not connect to the server, or cannot be used.", "Check the proxy in the agent's configuration, and whether it allows this server."},
	{"proxy_busy", Temporary, "The proxy cannot connect to the server at present.", ""},
	{"proxy_certificate", Human, "The certificate of the proxy did not verify.", "Add the proxy's CA to the certificates of the box; tls of the request is not for proxies."},

	// FTP.
	{"ftp_530", Human, "The FTP server lets nobody in without a login.", login},
	{"ftp_550", Permanent, "The FTP server has no such file.", checkURL},
	{"ftp_553", Permanent, "The FTP server does not take the name of the file.", checkURL},
	{"ftp_4xx", Temporary, "The FTP server cannot do it at present.", ""},
	{"ftp_5xx", Permanent, "The FTP server refuses.", "Check the URL, and look into the log of the server."},
	{"ftp_xxx", Permanent, "The FTP server gave an answer that means nothing here.", elsewhere},
	{"ftp_login", Human, "The FTP server refused user or password.", login},
	{"ftp_tls", Human, "The FTP server does not know AUTH TLS.", "Use another server, or an ftp URL if clear text is acceptable."},
	{"ftp_prot", Human, "The FTP server would send the file in clear text over a protected login.", "Have PROT P enabled on the server, or use another."},
	{"ftp_data_tls", Human, "The FTP server does not accept the TLS session of the data connection.", "Have session resumption enabled on the server, or its demand for it switched off."},
	{"ftp_data", Permanent, "The FTP server sent the agent to another host for the data.", elsewhere},
	{"ftp_data_port", Permanent, "The FTP server sent the agent to a port below 1024 for the data.", elsewhere},
	{"ftp_type", Permanent, "The URL asks for a transfer that would change the bytes.", "Leave out ;type= or use ;type=i."},
	{"no_file", Permanent, "The URL ends where a file name should be.", checkURL},

	// Files, Metalinks, URLs.
	{"scheme", Permanent, "The URL has a scheme that the agent does not speak.", "Use http, https, ftp, ftps or file."},
	{"file_root", Human, "A file URL leads outside of what the agent may read.", "Add one to fetch.file_roots, or move the file."},
	{"file_missing", Permanent, "A file URL names no file.", checkURL},
	{"file_permission", Human, "A file URL names a file that is closed to the agent.", "Give its user (slotfetch) read access."},
	{"file_type", Human, "A file URL names a directory, a device or the like.", checkURL},
	{"file", Human, "A file URL names a file that cannot be opened, for instance behind a link out of its root.", "Move the file, not a link to it, below its root."},
	{"metalink", Permanent, "The Metalink could not be read, or lists nothing of use.", "Check the URL and checksum.sha256, or give the URL of the image itself."},
	{"checksum_file", Permanent, "The file that was to have the SHA-256 has none for the image, or several.", "Check checksum.url, or give checksum.sha256."},

	{"no_checksum", Human, "Nobody said what the SHA-256 of the image is, and no file beside it does.",
		"Give checksum.sha256, publish one of these files, or set ontap.require_checksum=false."},

	// The signed manifest.
	{"signature_missing", Permanent, "This box takes images with a signed manifest only, and there is none.", "Put IMAGE.manifest.json and IMAGE.manifest.json.minisig beside the image, or send them in signature of the request."},
	{"signature_key", Human, "The manifest is signed with a key that this box does not trust.", "Add the public key to trust.keys in the agent's configuration if it should be trusted, and restart the agent."},
	{"signature_bad", Permanent, "The manifest is not what was signed: it, its signature or the comment in it was changed.", "Get both files anew from the publisher; if they are the same there, do not install the image."},
	{"signature_manifest", Permanent, "The manifest is signed, but does not say what it has to.", "Have the publisher sign a manifest with product, version, size and sha256."},
	{"signature_expired", Permanent, "The signed manifest is too old.", "Get a newer one from the publisher, and check the clock of the box."},
	{"signature_product", Permanent, "The image is for another product.", "Use the image for this product, or correct trust.product in the agent's configuration."},
	{"signature_digest", Permanent, "The signed manifest is of another image than the one that was asked for.", "Check checksum.sha256, or leave it out."},
	{"signature_downgrade", Human, "The signed version is lower than the one that runs.", "Set upgrade.allow_downgrade in the agent's configuration if that is what you want, and restart the agent."},
	{"signature_floor", Permanent, "The signed version is lower than the lowest that the publisher allows after the one that runs.", "Use a newer version."},
	{"signature_size", Permanent, "The image has another size than its signed manifest says; it was not kept.", checkURL},

	// The image.
	{"digest", Permanent, "The file is not the one that was asked for; it was not kept.",
		"Compare checksum.sha256 with what the publisher says; if it is right, the file on the server is another or damaged."},
	{"empty", Permanent, "The file has no bytes, and nobody said what its SHA-256 is.", "Check the URL, and the file on the server."},
	{"too_large", Human, "The image is larger than fetch.max_size.", "Raise fetch.max_size in the agent's configuration if it should be allowed."},
	{"version_exists", Human, "Another slot has an image of the same version with other content.", "Delete that package first."},
	{"not_iso", Permanent, "The image is no ISO 9660 file system, and slots.require_iso asks for one.", "Check that the URL is that of a firmware image."},

	// The box.
	{"no_slot", Human, "No slot is empty.", emptySlot},
	{"slot_occupied", Human, "The slot that was asked for has an image, or another fetch has it.", "Delete it or leave out slot_id."},
	{"slot_protected", Human, "The slot that was asked for runs now, or boots next.", otherSlot},
	{"slot_unknown", Human, "The slot that was asked for is not there any more.", otherSlot},
	{"boot", Human, "The agent cannot tell which slots the box needs, and so touches none.", "Repair or remove it and start again."},
	{"space", Human, "The disk has no room for the image beside its reserve.", "Delete a slot with DELETE /api/firmware/slots/<slot_id> and start again."},
	{"inodes", Human, "The file system of the slots can hold no further file, whatever its free space.",
		"Remove files that are not needed from that file system, or delete a slot with DELETE /api/firmware/slots/<slot_id>, and start again; a file system made with more inodes (mkfs.ext4 -N) lasts."},
	{"read_only", Human, "The slots directory is read-only, or belongs to another user.", "Make it writable and start again."},
	{"disk", Human, "Writing to the disk failed.", "Check the disk and the slots directory; the agent's journal has the details."},
	{"traffic", Human, "The attempts together received several times the image, without getting it.",
		"Use another server or a mirror, or raise fetch.max_traffic in the agent's configuration, and start again."},
	{"deadline", Human, "The fetch took longer than fetch.deadline, all attempts and restarts together.",
		"Use another server or a mirror, or raise fetch.deadline in the agent's configuration, and start again."},
	{"credentials", Human, "The agent cannot read the credentials that it keeps for the fetch.", "Start the fetch again."},
	{"internal", Human, "A fault of the agent itself.", journal},
}

// Faults is the table.
func Faults() []Fault { return slices.Clone(faults) }

// FaultOf is the row for code: its own, else that of its hundred (http_4xx), else that of its protocol (http_xxx). A code
// that nobody knows, of another version of the agent, is an internal one.
func FaultOf(code string) Fault {
	rows := []string{code}
	if proto, reply, ok := strings.Cut(code, "_"); ok && len(reply) == 3 && '0' <= reply[0] && reply[0] <= '9' {
		rows = append(rows, proto+"_"+string(min(reply[0], '5'))+"xx", proto+"_xxx") // beyond 599 is as 5xx (RFC 9110, section 15)
	}
	for _, row := range append(rows, "internal") {
		if i := slices.IndexFunc(faults, func(f Fault) bool { return f.Code == row }); i >= 0 {
			return faults[i]
		}
	}
	return Fault{}
}

// Doc is where the fault is explained: a file, in the documentation of the agent, and an anchor.
func (f Fault) Doc() string { return "errors.md#" + f.Code }
