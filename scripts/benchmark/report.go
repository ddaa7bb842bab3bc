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
	"time"
)

// median is the middle one; of an even number the lower of the two in the middle.
func median[T cmp.Ordered](v []T) T {
	v = slices.Sorted(slices.Values(v))
	return v[(len(v)-1)/2]
}

func (c *contestant) seconds() float64 { return median(c.took).Seconds() }

// report prints the figures and the bars; a bar's "must" and "aim" are those that the project has set itself.
func (b *bench) report(out io.Writer) error {
	const mib, gib = 1 << 20, 1 << 30
	load, _ := os.ReadFile("/proc/loadavg")
	kind, _ := exec.Command("stat", "-f", "-c", "%T", b.dir).Output()
	fmt.Fprintf(out, "\n%d MiB over loopback HTTP, %d rounds, interleaved; %d processors, %s, load %.4s\n\n",
		b.image.size/mib, len(b.fetch.took), runtime.NumCPU(), strings.TrimSpace(string(kind)), load)

	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0) // begins a new table after each Flush
	fmt.Fprintln(w, "THIS MACHINE ONLY\tMEDIAN\tRATE\tALL ROUNDS")
	for _, c := range b.all {
		var rounds []string
		for _, d := range c.took {
			rounds = append(rounds, fmt.Sprintf("%.2f", d.Round(10*time.Millisecond).Seconds()))
		}
		fmt.Fprintf(w, "%s\t%.2f s\t%.0f MB/s\t%s\n", c.name, c.seconds(), float64(b.image.size)/1e6/c.seconds(), strings.Join(rounds, " "))
	}
	fmt.Fprintf(w, "agent, RSS idle before the first fetch\t%.1f MiB\n", float64(b.idle)/mib)
	w.Flush()

	fmt.Fprintln(w, "\nFIGURE\tTHIS RUN\tMUST\tAIM")
	fmt.Fprintf(w, "against curl | tee | openssl, sync\t%.2f x\t>= 1.8\t>= 2.2\n", b.tee.seconds()/b.fetch.seconds())
	fmt.Fprintf(w, "against curl -o, sha256sum, sync\t%.2f x\n", b.sums.seconds()/b.fetch.seconds())
	fmt.Fprintf(w, "against the slower limit\t%.2f\t>= 0.75\t>= 0.95\n", max(b.netHash.seconds(), b.directSync.seconds())/b.fetch.seconds())
	fmt.Fprintf(w, "CPU seconds a GiB\t%.2f\t<= 2.0\t<= 1.4\n", float64(median(b.cpu))/100/(float64(b.image.size)/gib))
	fmt.Fprintf(w, "agent, peak RSS (VmHWM)\t%.1f MiB\t<= 32\t<= 25\n", float64(b.peak)/mib)
	if len(b.cached) > 0 {
		fmt.Fprintf(w, "image left in the page cache\t%.1f %%\t<= 1\t0\n", 100*float64(median(b.cached))/float64(b.image.size))
	}
	return w.Flush()
}
