package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// median is the middle one; of an even number the lower of the two in the middle.
func median[T cmp.Ordered](v []T) T {
	v = slices.Sorted(slices.Values(v))
	return v[(len(v)-1)/2]
}

// figure is what is held against a bar. must and aim are those that the project has set itself: at least so much, or, where
// most is set, at most.
type figure struct {
	name      string
	value     float64
	format    string
	must, aim float64
	most      bool
}

func (f figure) verdict() string {
	sign := 1.0
	if f.most {
		sign = -1
	}
	// As it is shown, so that nobody has to wonder.
	var shown float64
	_, _ = fmt.Sscan(fmt.Sprintf(f.format, f.value), &shown) // it was printed as a number
	switch {
	case sign*shown >= sign*f.aim:
		return "aim"
	case sign*shown >= sign*f.must:
		return "must"
	}
	return "MISSED"
}

func (b *bench) atLeast(name, format string, value, must, aim float64) {
	b.figures = append(b.figures, figure{name, value, format, must, aim, false})
}

func (b *bench) atMost(name, format string, value, must, aim float64) {
	b.figures = append(b.figures, figure{name, value, format, must, aim, true})
}

func (b *bench) fact(format string, args ...any) {
	b.facts = append(b.facts, fmt.Sprintf(format, args...))
}

func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(text))[:min(1, len(text))], "")
}

// report prints all times, the figures beside the bars, and what was left out.
func (b *bench) report(out io.Writer) error {
	kind, _ := exec.Command("stat", "-f", "-c", "%T", b.dir).Output()
	limit := "memory not limited"
	if b.own != nil && b.memory > 0 {
		limit = fmt.Sprintf("each contestant in %d MiB of memory (%s)", b.memory, b.own.version())
	}
	fmt.Fprintf(out, "\n%d MiB, medians of %d interleaved rounds, %s\n%d processors (%s), %s, load %s before and %s after, others at work before %d of %d runs\n",
		b.size, b.rounds, limit, runtime.NumCPU(), processorName(), strings.TrimSpace(string(kind)), b.load, loadAverage(), b.loud, b.runs)

	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0) // begins a new table after each Flush
	for _, r := range b.races {
		fmt.Fprintf(w, "\n%s (THIS MACHINE ONLY)\tMEDIAN\tCPU\tALL ROUNDS\n", strings.ToUpper(r.title))
		for _, c := range r.all {
			var rounds []string
			for _, d := range c.took {
				rounds = append(rounds, fmt.Sprintf("%.2f", d.Seconds()))
			}
			busy := "-"
			if m := median(c.busy); m > 0 {
				busy = fmt.Sprintf("%.2f s", m.Seconds())
			}
			fmt.Fprintf(w, "%s\t%.2f s\t%s\t%s\n", c.name, c.seconds(), busy, strings.Join(rounds, " "))
		}
		w.Flush()
	}
	fmt.Fprintln(w, "\nFIGURE\tTHIS RUN\tMUST\tAIM\tREACHED")
	for _, f := range b.figures {
		sign := ">="
		if f.most {
			sign = "<="
		}
		fmt.Fprintf(w, "%s\t"+f.format+"\t%s %g\t%s %g\t%s\n", f.name, f.value, sign, f.must, sign, f.aim, f.verdict())
	}
	w.Flush()
	fmt.Fprintln(out)
	for _, f := range b.facts {
		fmt.Fprintln(out, f)
	}
	for _, what := range b.without {
		fmt.Fprintln(out, "LEFT OUT:", what)
	}
	return nil
}

func processorName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	_, rest, _ := strings.Cut(string(text), "model name")
	_, rest, _ = strings.Cut(rest, ": ")
	name, _, _ := strings.Cut(rest, "\n")
	return cmp.Or(name, runtime.GOARCH)
}
