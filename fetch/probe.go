package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"slotfetch/api"
	"slotfetch/fetch/source"
	"slotfetch/slots"
	"slotfetch/store"
)

// This file is the look before a fetch: POST with dry_run. It asks what a fetch would ask, by the same code, and changes
// nothing: no row, no reservation, no file.

const (
	// maxProbes is how many looks go on at a time.
	maxProbes = 2
	// probeTime bounds a look at all places together; clients wait 75 s and more for an answer.
	probeTime = time.Minute
)

// errProbes means that maxProbes looks go on.
var errProbes = errors.New("too many probes")

// dryRun reads the parameter of that name.
func dryRun(r *http.Request) (bool, error) {
	const name = "dry_run"
	query, err := url.ParseQuery(r.URL.RawQuery)
	values, there := query[name]
	switch {
	case err != nil && strings.Contains(r.URL.RawQuery, name):
		// What Go leaves out of a malformed query must not turn a look into a fetch.
	case !there:
		return false, nil
	case len(values) > 1:
	case values[0] == "true", values[0] == "1":
		return true, nil
	case values[0] == "false", values[0] == "0":
		return false, nil
	}
	return false, api.Semantic(name, "true or false")
}

// checksum wants one, but where it may be left out: there it must only not be misspelt.
func (p Policy) checksum(o api.Object) error {
	err := o.Required("checksum")
	var missing *api.Error
	if (p.DryRun || p.Signed) && errors.As(err, &missing) && missing.Details["found"] == nil && !o.Has("checksum") {
		return nil
	}
	return err
}

// mayLack tells whether a digest inside checksum may be left out, since a signed manifest has it, and is not merely
// misspelt.
func (p Policy) mayLack(sum api.Object, name string) bool {
	var missing *api.Error
	return p.Signed && errors.As(sum.Required(name), &missing) && missing.Details["found"] == nil && !sum.Has(name)
}

// dry answers a dry run. It leaves a line in the log: an operator can look into a network by it.
func (m *Manager) dry(q Request, by store.Actor) (api.Reply, error) {
	// Not the context of the request: that ends with the server's limit for reading, and net/http cannot tell the two apart.
	body, err := m.Probe(context.Background(), q)
	m.cfg.Log.Info("dry run", "url", source.Redact(q.URL), "by", by.Name, "verdict", body.Verdict)
	if errors.Is(err, errShutdown) {
		return api.Reply{}, api.Unavailable("The agent is stopping.")
	}
	if errors.Is(err, errProbes) {
		return api.Reply{}, api.Unavailable(fmt.Sprintf("%d dry runs are under way, which is all at a time. Try again when they are through.", maxProbes))
	}
	if err != nil {
		return api.Reply{}, err
	}
	return api.Reply{Body: api.Probe{Body: body, Meta: api.Meta{Href: path + "?dry_run=true", Parent: "/api/firmware"}}}, nil
}

// Probe tells whether q would work now. Without a digest in q it decides as if there were one. It ends with ctx, or when
// the manager stops, and takes no longer than a minute.
func (m *Manager) Probe(ctx context.Context, q Request) (api.ProbeBody, error) {
	if m.probes.Add(1) > maxProbes {
		m.probes.Add(-1)
		return api.ProbeBody{}, errProbes
	}
	defer m.probes.Add(-1)
	ctx, stop := context.WithTimeoutCause(ctx, probeTime,
		source.NewError("stalled", fmt.Sprintf("The %s for all places were over before the server was through.", probeTime), nil))
	defer stop()
	defer context.AfterFunc(m.ctx, stop)()

	f := store.Fetch{URL: q.URL.String(), SHA256: q.SHA256, SHA512: q.SHA512, WantSlot: q.Slot, TLSVerify: q.TLSVerify, TLSCA: q.TLSCA, Force: q.Force}
	if q.ChecksumURL != nil {
		f.ChecksumURL = q.ChecksumURL.String()
	}
	var err error
	for _, u := range q.Mirrors {
		f.Mirrors = append(f.Mirrors, u.String())
	}
	if f.Signature, err = q.Signature.encode(); err != nil {
		return api.ProbeBody{}, err
	}
	p := &probe{d: &download{m: m, f: f}, body: api.ProbeBody{Verdict: string(source.OK), URL: f.URL}}
	p.signature(ctx, q)
	p.checksum(ctx, q.Secrets)
	p.schedule(q.Schedule)
	if s := m.holder(p.d.f); s != nil {
		p.dedup(s)
	} else {
		p.slot()
		candidates, err := p.d.plan(q.Secrets)
		if err != nil {
			return api.ProbeBody{}, err
		}
		p.places(ctx, candidates)
	}
	if m.ctx.Err() != nil {
		return api.ProbeBody{}, errShutdown
	}
	p.eta(q.Schedule.RateLimit)
	return p.body, nil
}

// eta estimates how long the image would take at the rate of the sample, or at that of a limit.
func (p *probe) eta(limit int64) {
	size, rate := p.body.Size, p.body.BytesPerSecond
	if size == nil || rate == nil {
		return
	}
	r := *rate
	for _, most := range []int64{limit, p.d.m.cfg.RateLimit} {
		if most > 0 {
			r = min(r, most)
		}
	}
	eta := (*size + r - 1) / r
	p.body.ETASeconds = &eta
}

// probe is one look.
type probe struct {
	d    *download // that never runs: what it knows to say is wanted
	body api.ProbeBody
	gain int64 // bytes that an eviction would free
}

// wire is c, of u, as the API has it; u is nil for the box.
func wire(u *url.URL, c source.Check) api.ProbeCheck {
	w := api.ProbeCheck{Name: c.Name, Result: string(c.Result), Message: c.Message}
	if c.Code != "" {
		w.Code = &c.Code
	}
	if c.Remedy != "" {
		w.Remedy = &c.Remedy
	}
	if u != nil {
		s := source.Redact(u)
		w.URL = &s
	}
	return w
}

// worsen makes the verdict at least r.
func (p *probe) worsen(r source.Result) {
	if r == source.Fail || r == source.Warning && p.body.Verdict == string(source.OK) {
		p.body.Verdict = string(r)
	}
}

// box notes a check of the box.
func (p *probe) box(c source.Check) {
	p.body.Checks = append(p.body.Checks, wire(nil, c))
	p.worsen(c.Result)
}

// checksum also reads the checksum file, if there is one.
func (p *probe) checksum(ctx context.Context, secrets Secrets) {
	const name = "checksum"
	if p.d.f.SHA256 == "" && p.d.m.wantsSignature(p.d.f) {
		return // the failure before says it
	}
	if p.d.f.ChecksumURL == "" || p.d.signed != nil {
		c := source.Check{Name: name, Result: source.OK, Message: "The image will be compared with the SHA-256."}
		if p.d.f.SHA256 == "" {
			c = source.Check{Name: name, Result: source.Warning, Code: "no_checksum", Message: "No SHA-256 is given.",
				Remedy: "Give checksum.sha256 to the fetch, which does not begin without."}
		}
		p.box(c)
		return
	}
	req, err := p.d.sumsRequest(secrets)
	sum, safe := "", false
	if err == nil {
		sum, safe, err = p.d.readSum(ctx, req, true)
	}
	if !safe && p.d.f.TLSVerify == nil {
		strict := true
		p.d.f.TLSVerify = &strict
	}
	c := source.Check{Name: name, Result: source.OK, Message: "The checksum file has the SHA-256 of the image: " + sum + "."}
	if err != nil {
		e, ok := sumsError(err)
		if !ok {
			e = p.d.explain(err)
		}
		c = source.Failure(name, e)
	}
	p.d.f.SHA256 = sum
	p.body.Checks = append(p.body.Checks, wire(req.URL, c))
	p.worsen(c.Result)
}

// signature looks for the signed manifest, where one is needed.
func (p *probe) signature(ctx context.Context, q Request) {
	const name = "signature"
	if !p.d.m.wantsSignature(p.d.f) {
		return
	}
	var err error
	if q.Signature != nil {
		err = p.d.believe(*q.Signature)
	} else {
		_, err = p.d.findSigned(ctx, q.Secrets)
	}
	if err != nil {
		p.box(source.Failure(name, p.d.explain(err)))
		return
	}
	s := p.d.signed
	p.d.f.SHA256 = s.sha256
	p.box(source.Check{Name: name, Result: source.OK, Message: fmt.Sprintf("The manifest is signed with the key %s: %s, version %s, %d bytes.", s.keyID, s.Product, s.Version, s.size)})
}

// schedule tells if the fetch would have to wait for its time.
func (p *probe) schedule(s store.Schedule) {
	if at := p.d.m.eligible(s); !at.IsZero() {
		p.box(source.Check{Name: "schedule", Result: source.OK, Message: "By not_before and its window the fetch would start at " + *api.FormatTime(at) + "."})
	}
}

// dedup is for an image that is there.
func (p *probe) dedup(s *slots.Slot) {
	p.body.Deduplicated, p.body.SlotID, p.body.Size = true, &s.ID, &s.Manifest.Size
	p.free()
	p.box(source.Check{Name: "slot", Result: source.OK, Message: fmt.Sprintf("Slot %d has this image already: nothing would be downloaded, "+
		"so no server was asked. With force it is.", s.ID)})
}

// free is what may still be written, -1 if that cannot be told.
func (p *probe) free() int64 {
	n, err := p.d.m.cfg.Slots.Free()
	if err != nil {
		p.d.m.cfg.Log.Warn("cannot look for free space", "err", err)
		return -1
	}
	p.body.Free = &n
	return n
}

func (p *probe) slot() {
	plan, err := p.d.m.cfg.Slots.Plan(p.d.f.WantSlot)
	if err != nil {
		p.box(source.Failure("slot", p.d.explain(p.d.reserveError(err))))
		return
	}
	p.body.SlotID, p.gain = &plan.Slot, plan.Gain()
	c := source.Check{Name: "slot", Result: source.OK, Message: fmt.Sprintf("Slot %d is empty.", plan.Slot)}
	if plan.Evicts != nil {
		c.Result, c.Code, c.Message = source.Warning, "evicts", plan.Words()
		c.Remedy = "Pin that image, or empty another slot, if it should be kept."
	}
	p.box(c)
}

// places looks at the URL and the mirrors, and then at the space for what is there.
func (p *probe) places(ctx context.Context, candidates []candidate) {
	good, failed, space := 0, 0, 0
	for i, c := range candidates {
		switch worst := p.place(ctx, c); worst {
		case source.Fail:
			failed++
		case source.Skipped:
		default:
			good++
			p.worsen(worst)
		}
		if i == 0 {
			space = len(p.body.Checks)
			p.body.Checks = append(p.body.Checks, api.ProbeCheck{}) // whose turn it is, but a mirror may know the size
		}
	}
	switch {
	case good == 0:
		p.worsen(source.Fail)
	case failed > 0:
		p.worsen(source.Warning)
	}
	c := p.space()
	p.worsen(c.Result)
	p.body.Checks[space] = wire(nil, c)
}

// place looks at one of them and gives the worst that it found; Skipped if there was no time for it.
func (p *probe) place(ctx context.Context, c candidate) source.Result {
	if ctx.Err() != nil {
		p.report(c.req.URL, source.Report{Size: -1, Checks: []source.Check{{Name: "answer", Result: source.Skipped,
			Message: fmt.Sprintf("Not looked at: the %s for all places were over.", probeTime)}}})
		return source.Skipped
	}
	if isMetalink(c.req.URL) {
		return p.metalink(ctx, c)
	}
	return p.report(c.req.URL, p.d.m.cfg.Source.Probe(ctx, c.req))
}

// metalink looks at a Metalink and at the first place that it lists.
func (p *probe) metalink(ctx context.Context, c candidate) source.Result {
	r, files := p.d.m.cfg.Source.ProbeMetalink(ctx, c.req)
	var found []candidate
	if files != nil {
		var err error
		if found, err = places(files, c); err != nil {
			r.Set(source.Failure("metalink", p.d.explain(err)))
		} else {
			r.Set(source.Check{Name: "metalink", Result: source.OK, Message: "Places of the image: " + list(found) + "."})
		}
	}
	worst := p.report(c.req.URL, r)
	if len(found) == 0 || worst == source.Fail {
		return source.Fail
	}
	if first := p.place(ctx, found[0]); first != source.OK {
		if first == source.Fail && len(found) > 1 {
			return source.Warning // the next may do
		}
		if worst == source.OK || first == source.Fail {
			return first
		}
	}
	return worst
}

// list names places.
func list(places []candidate) string {
	var urls []string
	for _, c := range places {
		urls = append(urls, source.Redact(c.req.URL))
	}
	return strings.Join(urls, ", ")
}

// report takes what was found at u.
func (p *probe) report(u *url.URL, r source.Report) source.Result {
	if size := p.body.Size; r.Size >= 0 && size != nil && *size != r.Size {
		r.Set(source.Check{Name: "size", Result: source.Warning, Code: "size_differs",
			Message: fmt.Sprintf("%d bytes, and %d at the place before: they are not the same file.", r.Size, *size), Remedy: "Find out which is the image."})
	}
	if !r.Failed() {
		if p.body.Size == nil && r.Size >= 0 {
			p.body.Size = &r.Size
		}
		if p.body.BytesPerSecond == nil && r.Rate > 0 {
			p.body.BytesPerSecond = &r.Rate
		}
	}
	worst := source.OK
	for _, c := range r.Checks {
		p.body.Checks = append(p.body.Checks, wire(u, c))
		if c.Result == source.Fail || c.Result == source.Warning && worst == source.OK {
			worst = c.Result
		}
	}
	return worst
}

func (p *probe) space() source.Check {
	c := source.Check{Name: "space", Result: source.Skipped, Message: "Not looked at: the size of the image is not known."}
	switch free := p.free(); {
	case free < 0:
		c.Message = "The file system does not say what is free."
	case p.body.Size == nil:
	case *p.body.Size > free+p.gain:
		return source.Failure(c.Name, p.d.explain(&slots.SpaceError{Needed: *p.body.Size, Free: free + p.gain}))
	default:
		c.Result, c.Message = source.OK, fmt.Sprintf("%d bytes are free beside the reserve.", free+p.gain)
	}
	return c
}
