package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"slotfetch/api"
	"slotfetch/fetch/source"
)

var update = flag.Bool("update", false, "write docs/errors.md anew")

// TestErrorsDoc compares docs/errors.md with the tables from which it is made.
func TestErrorsDoc(t *testing.T) {
	const file = "../../docs/errors.md"
	want := errorsDoc(t)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Errorf("docs/errors.md is not what the tables say (go test ./cmd/slotfetch -run TestErrorsDoc -update writes it):\n%s", d)
	}
}

// TestExitOfFault: the client knows only codes that the agent has.
func TestExitOfFault(t *testing.T) {
	for code, exit := range exitOfFault {
		if source.FaultOf(code).Code != code {
			t.Errorf("%s (exit code %d) is none of the agent's", code, exit)
		}
	}
}

func errorsDoc(t *testing.T) string {
	exits := exitMeanings(t)
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`<!-- Made from fetch/source/faults.go, api/errortypes.go and slotfetch.1. After a change of those:
     go test ./cmd/slotfetch -run TestErrorsDoc -update -->
# Errors, and what to do about them

A fetch that was accepted and then fails has a [code](#why-a-fetch-failed). A request that is refused has a
[type](#why-a-request-was-refused). The client ends with an [exit code](#exit-codes-of-the-client). None of them ever
changes its meaning; later versions may have more.

## Why a fetch failed

The code is where the fetch is seen: ` + "`error_details.code`" + ` of its document, beside the sentence in ` + "`error`" + `; in
` + "`details`" + ` of the client's error with ` + "`-o json`" + `; as ` + "`code=`" + ` (SLOTFETCH_CODE) in the lines ` + "`attempt failed` and `fetch failed`" + ` of the
journal; as a label of the metric ` + "`slotfetch_attempts_total`" + `. The HTTP status of the document is 200: the request for
it was fine. What to do about it is there too, as ` + "`remedy`" + ` or, in the client, behind ` + "`hint:`" + `.

Each code is of one class:

- *temporary*: the same fetch may work later. It is tried again by itself, with pauses, and fails with the code of the
  last attempt when there were too many in a row (` + "`fetch.retry_rounds`" + `), or, with a part of the image on the disk, when it got
  nothing for too long (` + "`fetch.retry_keep`" + `). Start it again then.
- *human*: it works once somebody changes something. The other mirrors are tried first.
- *permanent*: this server does not deliver this image. The other mirrors are tried first.
`)
	for _, f := range source.Faults() {
		code, ok := exitOfFault[f.Code]
		if !ok {
			code = exitFailed
		}
		p("### %s\n\n*%s* · exit code %d\n", f.Code, f.Class, code)
		proto, number, _ := strings.Cut(f.Code, "_")
		switch {
		case number == "xxx":
			p("%s All numbers of %s that are not listed.\n", f.Meaning, strings.ToUpper(proto))
		case strings.HasSuffix(number, "xx"):
			p("%s All numbers from %s00 to %s99 that are not listed.\n", f.Meaning, proto+"_"+number[:1], proto+"_"+number[:1])
		default:
			p("%s\n", f.Meaning)
		}
		if f.Remedy != "" {
			p("What to do: %s\n", strings.ReplaceAll(f.Remedy, "<", `\<`))
		}
	}
	p(`## Why a request was refused

The type is ` + "`error.type`" + ` of the reply.
`)
	for _, e := range api.ErrorTypes() {
		p("### %s\n\nHTTP status %d · exit code %d\n\n%s\n\nWhat to do: %s\n", e.Type, e.Status, codeOfStatus(e.Status), e.Meaning, e.Remedy)
	}
	p(`## Exit codes of the client

| code | |
|---|---|`)
	for _, e := range exits {
		p("| %s | %s |", e[0], e[1])
	}
	return b.String()
}

// exitMeanings are the exit codes with what the manual page says of them; another test compares it with the program.
func exitMeanings(t *testing.T) (all [][2]string) {
	macro := regexp.MustCompile(`^\.Fl Fl (\S+) \.$`)
	for _, line := range manPage(t)["EXIT STATUS"] {
		if code, ok := strings.CutPrefix(line, ".It "); ok {
			all = append(all, [2]string{code, ""})
			continue
		}
		if line == ".El" {
			break
		}
		if len(all) == 0 {
			continue
		}
		last := &all[len(all)-1][1]
		*last = strings.TrimSpace(*last + " " + macro.ReplaceAllString(line, "`--$1`."))
	}
	if len(all) < 5 {
		t.Fatalf("the manual page has %d exit codes", len(all))
	}
	return all
}
