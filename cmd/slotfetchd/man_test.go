package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// slotfetchd(8) names every command and option, and no other.
func TestManualOfProgram(t *testing.T) {
	t.Parallel()
	page := readPage(t, "slotfetchd.8")
	var commands, flags []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		c.LocalFlags().VisitAll(func(f *pflag.Flag) { flags = append(flags, f.Name) })
		if c.Runnable() && (!c.HasSubCommands() || c == c.Root()) && c.Name() != "help" && c.Name() != "completion" && !strings.HasPrefix(c.Name(), "__") {
			commands = append(commands, strings.TrimPrefix(c.CommandPath(), "slotfetchd "))
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := rootCommand()
	walk(root)
	commands = append(commands, "completion") // cobra's own, made when it runs
	var named []string
	for _, m := range regexp.MustCompile(`(?m)^\.It Ic ((?:[a-z]+ ?)+?)(?: (?:Ar|Op) .*)?$`).FindAllStringSubmatch(page, -1) {
		named = append(named, m[1])
	}
	same(t, "commands", commands, named)
	named = nil
	for _, m := range regexp.MustCompile(`Fl -([a-z-]+)`).FindAllStringSubmatch(page, -1) {
		named = append(named, m[1])
	}
	same(t, "options", flags, named)
}

// slotfetchd.conf(5) names every key in its section with its default, and no other.
func TestManualOfConfiguration(t *testing.T) {
	t.Parallel()
	s := settings{config: defaults()}
	s.Slots.Dir = s.StateDir + "/slots"
	var keys, named []string
	section := ""
	for line := range strings.Lines(mustShow(t, s)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		} else if line != "" {
			keys = append(keys, section+line)
		}
	}
	section = ""
	for line := range strings.Lines(readPage(t, "slotfetchd.conf.5")) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, ".Ss "); ok {
			section = name
		} else if item, ok := strings.CutPrefix(line, ".It Ic "); ok {
			named = append(named, section+item)
		}
	}
	same(t, "keys", keys, named)
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func same(t *testing.T, what string, program, page []string) {
	t.Helper()
	slices.Sort(program)
	slices.Sort(page)
	program, page = slices.Compact(program), slices.Compact(page)
	for _, x := range program {
		if !slices.Contains(page, x) {
			t.Errorf("%s: the page lacks %q", what, x)
		}
	}
	for _, x := range page {
		if !slices.Contains(program, x) {
			t.Errorf("%s: the page has %q, which does not exist", what, x)
		}
	}
}
