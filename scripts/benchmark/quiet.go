package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// quiet waits until four fifths of the processor are idle, for patience at most, and tells whether they are.
func quiet(ctx context.Context, patience time.Duration) bool {
	const sample = 250 * time.Millisecond
	for deadline := time.Now().Add(patience); ; {
		idle, all := processorTime()
		select {
		case <-time.After(sample):
		case <-ctx.Done():
			return false
		}
		idle2, all2 := processorTime()
		if all2 > all && float64(idle2-idle) >= 0.8*float64(all2-all) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// processorTime is how long all processors were idle, and were there: the first line of proc_stat(5).
func processorTime() (idle, all int64) {
	text, _ := os.ReadFile("/proc/stat") // Linux has it
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		var n int64
		if i == 0 || i > 8 { // guests are counted as users too
			continue
		}
		_, _ = fmt.Sscan(field, &n) // the kernel writes numbers
		all += n
		if i == 4 || i == 5 { // waiting for the disk included
			idle += n
		}
	}
	return idle, all
}
