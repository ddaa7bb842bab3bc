package main

import "testing"

// TestMistypedCommands is about what people read who do not know the program.
func TestMistypedCommands(t *testing.T) {
	home(t)
	for _, tt := range []struct {
		args  []string
		words []string
	}{
		{[]string{"lss"}, []string{`unknown command "lss"`, "Did you mean: slotfetch ls\n"}},
		{[]string{"download", testURL}, []string{"Did you mean: slotfetch fetch\n"}},
		{[]string{"frobnicate"}, []string{"See: slotfetch --help"}},
		{[]string{"slots", "1"}, []string{`unknown command "1" for "slotfetch slots"`, "See: slotfetch slots --help"}},
		{[]string{"slots", "delete", "1"}, []string{"Did you mean: slotfetch slots rm\n"}},
		{[]string{"completion", "tcsh"}, []string{`unknown command "tcsh" for "slotfetch completion"`}},
		{[]string{"show"}, []string{"slotfetch: show: an argument is missing", "Write: slotfetch show KEY\n"}},
		{[]string{"slots", "rm"}, []string{"Write: slotfetch slots rm N\n"}},
		{[]string{"ls", "x"}, []string{`slotfetch: ls takes no argument such as "x"`}},
		{[]string{"fetch", testURL, testDigest}, []string{testDigest, "takes only one argument", "Write: slotfetch fetch URL --sha256 DIGEST\n"}},
		{[]string{"fetch", testURL, "--sha265", testDigest}, []string{"unknown flag: --sha265", "See: slotfetch fetch --help"}},
		{[]string{"fetch", testURL, "--sha256", testDigest, "--slot", "1x"}, []string{`"1x" is no value for --slot`, "whole number"}},
		{[]string{"wait", testKey, "--timeout", "10"}, []string{`"10" is no value for --timeout`, "90s"}},
		{[]string{"fetch", testURL, "--sha256", testDigest, "-w", "-d"}, []string{"slotfetch: --detach and --wait exclude each other\n"}},
	} {
		invoke(t, "", tt.args...).want(t, exitUsage, tt.words...)
	}
}
