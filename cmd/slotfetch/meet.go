package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
)

// meet settles the first contact with a certificate that nothing vouches for.
func (c *client) meet(ctx context.Context, s *errUntrusted) error {
	a, seen := c.app, fingerprint(s.leaf)
	switch {
	case c.firstUse == firstUsePin:
		a.note("Trusting %s at the first contact.\nFingerprint %s", c.box, seen)
	case c.firstUse == firstUseFail || !a.canAsk():
		return &failure{code: exitNetwork, kind: "Untrusted", cause: s, details: map[string]any{"fingerprint": seen},
			message: fmt.Sprintf("the certificate of %s is not trusted yet: %s.\nFingerprint %s", c.box, s.cause, seen),
			hint: fmt.Sprintf("Compare the fingerprint with that in the log of the box (journalctl -u slotfetchd), then: slotfetch trust %s --pin %s\n"+
				"      Or give --pin to slotfetch login.", quote(c.box.name), seen)}
	default:
		fmt.Fprintf(a.stderr, "The authenticity of box %s can't be established: %s.\nSHA-256 fingerprint of its certificate:\n  %s\n"+
			"slotfetchd logs it at every start: journalctl -u slotfetchd\n", c.box, s.cause, seen)
		yes, err := a.confirm(ctx, "Trust it?")
		if err != nil {
			return err
		}
		if !yes {
			return &failure{code: exitNetwork, kind: "Untrusted", cause: s, message: fmt.Sprintf("%s is not trusted; nothing was sent to it", c.box)}
		}
	}
	return c.remember(s.leaf)
}

// remember pins a certificate, on disk and for the rest of this run.
func (c *client) remember(leaf *x509.Certificate) error {
	p := newPin(leaf, c.app.now())
	c.verifier.pinned = p
	return changePins(func(all map[string]pin) { all[c.box.hostPort()] = p })
}

// certificate fetches the certificate of the box, with what it sends along, and ends the connection. A fingerprint
// given with --pin is checked; nothing else is.
func (c *client) certificate(ctx context.Context) ([]*x509.Certificate, error) {
	look := *c.verifier
	base := c.http.Transport.(*http.Transport).Clone()
	base.TLSClientConfig = look.tlsConfig()
	base.TLSClientConfig.VerifyConnection = func(cs tls.ConnectionState) error {
		if look.want != "" {
			if err := look.check(cs); err != nil {
				return err
			}
		}
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the box showed no certificate")
		}
		return &errObserved{chain: cs.PeerCertificates}
	}
	observer := *c
	observer.http = &http.Client{Transport: base}
	observer.session = ""
	_, err := observer.call(ctx, http.MethodGet, pathMethods, nil, nil)
	if seen, ok := errors.AsType[*errObserved](err); ok {
		return seen.chain, nil
	}
	if err == nil {
		err = c.stranger("it showed no certificate")
	}
	return nil, err
}

func (a *app) trustCommand() *cobra.Command {
	t := &trust{app: a}
	cmd := &cobra.Command{
		Use:   "trust [BOX]",
		Short: "Show, pin or forget the certificate of a box",
		Long: `Without a flag, show the certificate that the box presents and whether it is trusted; on a
terminal, ask whether to pin it when nothing vouches for it.

A pinned certificate is the only one accepted from that host and port, until the pin is
forgotten. Boxes whose certificate a known CA has signed need no pin.`,
		Example: `  slotfetch trust lab1
  slotfetch trust 10.0.0.5:8443 --pin SHA256:5D:41:…
  slotfetch trust --forget lab1
  slotfetch trust --list`,
		Args:              wants(0, 1),
		ValidArgsFunction: a.completeBoxes,
		RunE:              a.act(t.run),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&t.pin, "pin", "", "pin this SHA-256 `FINGERPRINT` without connecting")
	f.BoolVar(&t.forget, "forget", false, "remove the pin")
	f.BoolVar(&t.firstUse, "trust-on-first-use", false, "pin what the box presents, without a question")
	f.BoolVar(&t.list, "list", false, "show all pins")
	cmd.MarkFlagsMutuallyExclusive("pin", "forget", "trust-on-first-use", "list")
	return cmd
}

// trust is the command of that name with its flags.
type trust struct {
	app      *app
	pin      string
	forget   bool
	firstUse bool
	list     bool
}

// trusted is what trust -o json prints.
type trusted struct {
	Box         string `json:"box"`
	Fingerprint string `json:"sha256"`
	// Trust is pinned, ca, changed (another one is pinned) or none.
	Trust string `json:"trust"`
}

func (t *trust) run(ctx context.Context, args []string) error {
	a := t.app
	if t.list {
		return t.showAll(args)
	}
	if len(args) == 1 {
		if a.box != "" && a.box != args[0] {
			return usage("the box is given twice, as an argument and with --box", "")
		}
		a.box = args[0]
	}
	b, err := a.resolveBox()
	if err != nil {
		return err
	}
	if b.local() {
		return usage("a unix socket has no certificate", "")
	}
	switch {
	case t.pin != "":
		return t.set(b)
	case t.forget:
		return t.remove(b)
	}
	return t.look(ctx, b)
}

func (t *trust) showAll(args []string) error {
	if len(args) != 0 {
		return usage("--list takes no box", "")
	}
	p, err := loadPins()
	if err != nil {
		return err
	}
	docs := []trusted{}
	for _, name := range sortedKeys(p.Pins) {
		docs = append(docs, trusted{Box: name, Fingerprint: p.Pins[name].SHA256, Trust: "pinned"})
	}
	v := view{doc: map[string]any{"items": docs}, items: []any{}, text: func(t *page) {
		t.row("BOX", "FINGERPRINT")
		for _, d := range docs {
			t.row(d.Box, d.Fingerprint)
		}
	}}
	for _, d := range docs {
		v.items = append(v.items, d)
		v.ids = append(v.ids, d.Box)
	}
	return t.app.show(v)
}

func (t *trust) set(b box) error {
	seen, err := parseFingerprint(t.pin)
	if err != nil {
		return err
	}
	err = changePins(func(all map[string]pin) {
		all[b.hostPort()] = pin{SHA256: seen, Added: t.app.now().UTC()}
	})
	if err != nil {
		return err
	}
	return t.show(b, trusted{Box: b.hostPort(), Fingerprint: seen, Trust: "pinned"})
}

func (t *trust) remove(b box) error {
	found := false
	if err := changePins(func(all map[string]pin) {
		_, found = all[b.hostPort()]
		delete(all, b.hostPort())
	}); err != nil {
		return err
	}
	if !found {
		return &failure{code: exitNotFound, kind: "NoPin", message: fmt.Sprintf("no certificate is pinned for %s", b.hostPort()),
			hint: "Look with: slotfetch trust --list"}
	}
	t.app.note("Forgot the certificate of %s.", b)
	return nil
}

// look connects, and pins where that is wanted.
func (t *trust) look(ctx context.Context, b box) error {
	c, err := t.app.openBox(b)
	if err != nil {
		return err
	}
	defer c.close()
	chain, err := c.certificate(ctx)
	if err != nil {
		return err
	}
	leaf := chain[0]
	doc := trusted{Box: b.hostPort(), Fingerprint: fingerprint(leaf), Trust: "ca"}
	c.verifier.insecure = false // The question is what would be trusted without that flag.
	err = c.verifier.check(tls.ConnectionState{PeerCertificates: chain})
	stranger, isStranger := errors.AsType[*errUntrusted](err)
	switch {
	case err == nil && c.verifier.pinned.SHA256 != "" && same(c.verifier.pinned.SHA256, doc.Fingerprint):
		doc.Trust = "pinned"
	case err == nil:
	case !isStranger:
		return err
	case t.firstUse:
		if err := c.remember(leaf); err != nil {
			return err
		}
		doc.Trust = "pinned"
	case t.app.canAsk():
		if err := c.meet(ctx, stranger); err != nil {
			return err
		}
		doc.Trust = "pinned"
	default:
		doc.Trust = "none"
	}
	return t.show(b, doc)
}

func (t *trust) show(b box, doc trusted) error {
	says := map[string]string{
		"pinned": "Its certificate is pinned.",
		"ca":     "Its certificate verifies; no pin is needed.",
		"none":   "Its certificate is not trusted. Pin it with: slotfetch trust " + quote(b.name) + " --pin " + doc.Fingerprint,
	}
	return t.app.show(view{doc: doc, ids: []string{doc.Fingerprint}, text: func(p *page) {
		p.line("%s\n%s", b, doc.Fingerprint)
		p.say("%s", says[doc.Trust])
	}})
}
