package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"slotfetch/api"
)

func (a *app) probeCommand() *cobra.Command {
	f := &fetch{app: a}
	cmd := &cobra.Command{
		Use:        "probe URL",
		SuggestFor: []string{"check", "test", "try", "preflight", "dry-run"},
		Short:      "Look whether a fetch would work",
		Long: `Ask the box whether it could fetch the image at URL now, and why not: name, proxy, egress
policy, certificate, clocks, credentials, redirects, size, digest, rate, whether a broken
download could be resumed, slot and space. Nothing is fetched, and nothing changes on the box.

The options are those of fetch; --sha256 may be left out. The box opens the URL and each mirror
as a fetch would, and reads a little. That takes seconds, and a minute at most.

The exit status is 0 if the fetch would work, with or without warnings; else that of a fetch
which fails for the same reason: 9 without a slot or space, 7 if the server announces another
SHA-256, 1 for anything else, such as an image server that is not reached or refuses.`,
		Example: `  slotfetch probe https://example.com/sps.iso
  slotfetch probe https://example.com/sps.iso --sha256 SHA256SUMS --slot 3 \
      --mirror ftp://mirror.example.com/sps.iso
  slotfetch probe https://example.com/sps.iso -o json | jq -r .body.verdict`,
		Args:              wants(1, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              a.act(f.probe),
	}
	f.imageFlags(cmd, "(a fetch needs it)")
	f.flags.Lookup("slot").Usage = "look at slot `N`, which must be empty (default: the lowest empty one)"
	f.flags.Lookup("force").Usage = "look at the servers also if a slot of the box has the image already"
	f.flags.Lookup("mirror").Usage = "another `URL` of the same image, looked at after the first; may be repeated"
	return cmd
}

func (f *fetch) probe(ctx context.Context, args []string) error {
	a := f.app
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
		return c.printCurl(http.MethodPost, pathDryRun, &request)
	}
	a.note("The box looks at the image, which takes a minute at most.")
	answer, err := c.probe(ctx, request)
	if err != nil {
		return err
	}
	v := view{doc: answer, text: func(p *page) { showProbe(p, answer.Body) }}
	if id := answer.Body.SlotID; id != nil {
		v.ids = []string{fmt.Sprint(*id)}
	}
	if err := a.show(v); err != nil {
		return err
	}
	return a.probeFailure(answer.Body)
}

// probeFailure is nil unless the fetch would fail. With a table, stdout has said everything.
func (a *app) probeFailure(b api.ProbeBody) error {
	if b.Verdict != "fail" {
		return nil
	}
	c := decisive(b)
	f := &failure{code: exitFailed, kind: "ProbeFailed", message: "a fetch would fail: " + c.Message, hint: text(c.Remedy),
		details: map[string]any{"check": c.Name, "code": text(c.Code)}, printed: a.output == "table"}
	if code, ok := exitOfFault[text(c.Code)]; ok {
		f.code = code
	}
	return f
}

// decisive is the check because of which a fetch would fail: of the box, or the first one.
func decisive(b api.ProbeBody) api.ProbeCheck {
	first := api.ProbeCheck{Message: "The box gave no reason."}
	found := false
	for _, c := range b.Checks {
		switch {
		case c.Result != "fail":
		case c.URL == nil:
			return c
		case !found:
			first, found = c, true
		}
	}
	return first
}

func showProbe(p *page, b api.ProbeBody) {
	about := ""
	for _, c := range b.Checks {
		if c.Result == "skipped" && p.quiet {
			continue
		}
		of := "Box"
		if c.URL != nil {
			of = *c.URL
		}
		if of != about {
			p.row(of)
			about = of
		}
		word := c.Result
		if word == "fail" {
			word = "FAIL"
		}
		p.row("", word, c.Name, c.Message)
		if c.Remedy != nil {
			p.row("", "", "", "  "+*c.Remedy)
		}
	}
	p.line("%s", verdictText(b))
}

// verdictText is the last line: what comes of it all.
func verdictText(b api.ProbeBody) string {
	switch {
	case b.Verdict == "fail":
		return "FAIL: a fetch would fail: " + decisive(b).Message
	case b.Deduplicated && b.SlotID != nil:
		return fmt.Sprintf("%s: slot %d has this image already; nothing would be downloaded.", b.Verdict, *b.SlotID)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s: a fetch would work", b.Verdict)
	if b.SlotID != nil {
		fmt.Fprintf(&s, ", into slot %d", *b.SlotID)
	}
	if b.Size != nil {
		fmt.Fprintf(&s, ", %s", size(*b.Size))
	}
	if b.ETASeconds != nil && b.BytesPerSecond != nil {
		fmt.Fprintf(&s, ", about %s at %s", span(time.Duration(*b.ETASeconds)*time.Second), rate(*b.BytesPerSecond))
	}
	return s.String() + "."
}
