package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"slotfetch/api"
)

// fetch is the command of that name with its flags.
type fetch struct {
	app         *app
	flags       *pflag.FlagSet
	sha256      string
	sha512      string
	manifest    string
	slot        int
	mirrors     []string
	credentials string
	ca          string
	tlsVerify   bool
	force       bool
	idempotency string
	wait        bool
	detach      bool
	paused      bool
	schedule
}

func (a *app) fetchCommand() *cobra.Command {
	f := &fetch{app: a}
	cmd := &cobra.Command{
		Use:        "fetch URL --sha256 DIGEST",
		SuggestFor: []string{"get", "start", "download", "install"},
		Short:      "Fetch an image into a slot",
		Long: `Tell the box to fetch the image at URL into a slot. The box downloads it itself, so URL must
be reachable from there; http, https, ftp and ftps are possible, and file where the box
allows it. Nothing is installed unless the SHA-256 is right, and no image is overwritten. If a
slot has the image already, the fetch is finished at once without a download.

--sha256 takes 64 hex digits; or a line as sha256sum prints it; or a file of such lines, of
which the one with the name of the image is taken (- reads them from stdin). If it is a URL of
such a file, or of a Metalink (.meta4), the box reads it; whoever can change that file can
change the image. It may be left out with --manifest.

On a terminal, or with --timeout, slotfetch waits for the end and shows the progress; else, or
with --detach, it prints the key of the fetch and ends. Ctrl-C stops the waiting, not the fetch.`,
		Example: `  slotfetch fetch https://example.com/sps.iso --sha256 5d41ab90…c2f7
  slotfetch fetch https://example.com/sps.iso --sha256 SHA256SUMS --slot 3
  curl -s https://example.com/SHA256SUMS |
      slotfetch fetch https://example.com/sps.iso --sha256 -
  slotfetch fetch ftps://files.example.com/sps.iso --sha256 SHA256SUMS \
      --credentials-file ftp-login --ca corporate-ca.pem
  key=$(slotfetch fetch --detach https://example.com/sps.iso --sha256 SHA256SUMS)
  slotfetch wait "$key" --timeout 30m`,
		Args:              wants(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              a.act(f.run),
	}
	f.imageFlags(cmd, "(required)")
	f.add(f.flags, "")
	f.flags.BoolVar(&f.paused, "paused", false, "let it wait in the queue until: slotfetch resume KEY")
	f.flags.StringVar(&f.idempotency, "idempotency-key", "", "`KEY` of your own for this request: the same command again gives the same fetch")
	f.flags.BoolVarP(&f.wait, "wait", "w", false, "wait for the end and exit by it (default on a terminal)")
	f.flags.BoolVarP(&f.detach, "detach", "d", false, "print the key and do not wait")
	cmd.MarkFlagsMutuallyExclusive("wait", "detach")
	return cmd
}

// imageFlags are those that say which image, from where and into which slot.
func (f *fetch) imageFlags(cmd *cobra.Command, digest string) {
	f.flags = cmd.Flags()
	f.flags.SortFlags = false
	f.flags.StringVar(&f.sha256, "sha256", "", "`DIGEST` of the image, a sha256sum line, or a FILE or URL of such lines "+digest)
	f.flags.StringVar(&f.sha512, "sha512", "", "a SHA-512 `DIGEST` to check in addition, in the same forms")
	f.flags.StringVar(&f.manifest, "manifest", "", "signed manifest of the image in `FILE`, its signature in FILE.minisig; it has the SHA-256")
	f.flags.IntVar(&f.slot, "slot", 0, "fetch into slot `N`, which must be empty (default: the lowest empty one)")
	f.flags.BoolVar(&f.force, "force", false, "download the image also if a slot of the box has it already")
	f.flags.StringArrayVar(&f.mirrors, "mirror", nil, "another `URL` of the same image, tried after the first; may be repeated")
	f.flags.StringVar(&f.credentials, "credentials-file", "", "`FILE` with the user name and the password for the server of URL, one a line; - is stdin")
	f.flags.StringVar(&f.ca, "ca", "", "the server of the image must be signed by a CA in `FILE` (PEM)")
	f.flags.BoolVar(&f.tlsVerify, "tls-verify", true, "=true: the certificate of the image's server must verify; =false: it need not\n(default: it must where credentials are sent)")
	f.flags.Lookup("tls-verify").DefValue = ""
	f.flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "user-file" {
			name = "credentials-file"
		}
		return pflag.NormalizedName(name)
	})
}

// unsent tells that there was no connection to send anything over.
func unsent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func (f *fetch) run(ctx context.Context, args []string) error {
	a := f.app
	if f.sha256 == "" && f.manifest == "" {
		return usage("--sha256 is missing", "Give the digest of the image, or the name of its checksum file.")
	}
	request, err := f.request(args[0])
	if err != nil {
		return err
	}
	c, err := a.open()
	if err != nil {
		return err
	}
	defer c.close()
	if a.curl {
		var headers []string
		if f.idempotency != "" {
			headers = []string{"Idempotency-Key: " + f.idempotency}
		}
		return c.printCurl(http.MethodPost, pathFetches, &request, headers...)
	}
	if f.idempotency == "" {
		f.idempotency = rand.Text()
	}
	accepted, err := c.startFetch(ctx, request, f.idempotency)
	if err != nil {
		if bad := asFailure(err); (bad.code == exitInterrupted || bad.temporary) && !unsent(err) {
			bad.hint = strings.TrimSpace(bad.hint + " The fetch may have been started all the same. Look with: slotfetch ls")
			return bad
		}
		return err
	}
	if !f.waits() {
		a.note("Started. Follow it with: slotfetch wait %s", accepted.Key)
		return a.show(view{doc: accepted, ids: []string{accepted.Key}, text: func(p *page) { p.line("%s", accepted.Key) }})
	}
	a.note("Fetch %s started.", accepted.Key)
	last, err := a.follow(ctx, c, []string{accepted.Key})
	if err != nil {
		return err
	}
	return a.showOutcomes(last)
}

// waits applies the default of --wait: where somebody watches, or has said for how long.
func (f *fetch) waits() bool {
	if f.flags.Changed("wait") {
		return f.wait
	}
	if f.flags.Changed("detach") {
		return !f.detach
	}
	return f.app.timeout > 0 || isTerminal(f.app.stderr)
}

// request checks what can be checked here, because the remedy is nearer than in an answer of the box.
func (f *fetch) request(rawURL string) (api.FetchRequest, error) {
	r := api.FetchRequest{URL: rawURL, Mirrors: f.mirrors, Force: f.force}
	if err := f.checkURLs(rawURL); err != nil {
		return r, err
	}
	if f.credentials == "-" && (f.sha256 == "-" || f.sha512 == "-") || f.sha256 == "-" && f.sha512 == "-" {
		return r, usage("stdin can be read only once: - is given twice", "")
	}
	var err error
	if strings.Contains(f.sha256, "://") {
		if err := checkURL("--sha256", f.sha256); err != nil {
			return r, err
		}
		r.Checksum.URL = f.sha256
	} else if f.sha256 != "" {
		if r.Checksum.SHA256, err = sha256Algorithm.digest(f.sha256, rawURL, f.app.stdin); err != nil {
			return r, err
		}
	}
	if f.flags.Changed("sha512") {
		if r.Checksum.SHA512, err = sha512Algorithm.digest(f.sha512, rawURL, f.app.stdin); err != nil {
			return r, err
		}
	}
	if f.manifest != "" {
		if r.Signature, err = readSignature(f.manifest); err != nil {
			return r, err
		}
	}
	if f.flags.Changed("slot") {
		if f.slot < 0 {
			return r, usage("--slot must not be negative", "Look at the slots with: slotfetch slots")
		}
		r.SlotID = &f.slot
	}
	if f.credentials != "" {
		if r.Credentials, err = f.readCredentials(); err != nil {
			return r, err
		}
	}
	if r.FetchSchedule, err = f.read(f.flags, f.app.now()); err != nil {
		return r, err
	}
	if f.paused {
		r.Paused = &f.paused
	}
	r.TLS, err = f.tls()
	return r, err
}

func (f *fetch) checkURLs(rawURL string) error {
	if len(f.mirrors) > 8 {
		return usage(fmt.Sprintf("%d mirrors are given, 8 are possible", len(f.mirrors)), "")
	}
	if err := checkURL("URL", rawURL); err != nil {
		return err
	}
	for _, m := range f.mirrors {
		if err := checkURL("--mirror", m); err != nil {
			return err
		}
	}
	for _, raw := range append([]string{rawURL}, f.mirrors...) {
		if u, err := url.Parse(raw); err == nil && u.User != nil {
			if _, ok := u.User.Password(); ok {
				f.app.note("note: a password in a URL can be seen by other users of this machine; --credentials-file hides it.")
				break
			}
		}
	}
	return nil
}

// checkURL refuses what no box takes.
func checkURL(what, raw string) error {
	u, err := url.Parse(raw)
	switch {
	case len(raw) > 4096:
		return usage(what+" is longer than 4096 bytes", "")
	case strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return usage(what+" has a blank or a control character in it", "Write %20 for a blank.")
	case err != nil:
		return usage(what+" is not a URL", "It looks like this: https://example.com/sps.iso")
	case !slices.Contains([]string{"http", "https", "ftp", "ftps", "file"}, strings.ToLower(u.Scheme)):
		return usage(fmt.Sprintf("%s %q has no scheme that a box can fetch", what, u.Redacted()), "Use http, https, ftp, ftps or file, as in https://example.com/sps.iso")
	case u.Host == "" && !strings.EqualFold(u.Scheme, "file"):
		return usage(fmt.Sprintf("%s %q has no host", what, u.Redacted()), "It looks like this: https://example.com/sps.iso")
	}
	return nil
}

// readCredentials reads two lines, the user name and the password.
func (f *fetch) readCredentials() (*api.Credentials, error) {
	r := f.app.stdin
	if f.credentials != "-" {
		file, err := os.Open(f.credentials)
		if err != nil {
			return nil, usage(fmt.Sprintf("cannot read the credentials: %v", err), "")
		}
		defer file.Close()
		r = file
	}
	data, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return nil, usage(fmt.Sprintf("cannot read the credentials: %v", err), "")
	}
	lines := splitLines(data)
	if lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	if len(lines) != 2 {
		return nil, usage(fmt.Sprintf("the credentials file has %d lines, not 2", len(lines)), "The first line is the user name, the second the password.")
	}
	if lines[0] == "" || strings.Contains(lines[0], ":") {
		return nil, usage("the user name in the credentials file is empty or has a colon in it", "The first line is the user name, the second the password.")
	}
	return &api.Credentials{Username: lines[0], Password: lines[1]}, nil
}

// tls is nil when neither --ca nor --tls-verify is given: then the box decides by its policy.
func (f *fetch) tls() (*api.TLS, error) {
	verify := f.flags.Changed("tls-verify")
	if f.ca == "" && !verify {
		return nil, nil
	}
	t := &api.TLS{}
	if verify {
		t.Verify = &f.tlsVerify
	}
	if f.ca == "" {
		return t, nil
	}
	if verify && !f.tlsVerify {
		return nil, usage("--ca and --tls-verify=false exclude each other", "With --ca the certificate of the server is verified.")
	}
	data, err := os.ReadFile(f.ca)
	if err != nil {
		return nil, usage(fmt.Sprintf("cannot read the CA file: %v", err), "")
	}
	// Only certificates go out: a private key in the same file stays here.
	var found int
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, usage(fmt.Sprintf("a certificate in %s is damaged: %v", f.ca, err), "")
		}
		found++
		t.CA += string(pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes}))
	}
	if found == 0 {
		return nil, usage("no PEM certificate in the CA file "+f.ca, "It begins with -----BEGIN CERTIFICATE-----")
	}
	return t, nil
}
