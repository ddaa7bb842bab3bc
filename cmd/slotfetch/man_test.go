package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPage is docs/slotfetch.1 by sections: for each .Ss, else .Sh, its lines.
func manPage(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile("../../docs/slotfetch.1")
	if err != nil {
		t.Fatal(err)
	}
	sections, name := map[string][]string{}, ""
	for _, line := range strings.Split(string(data), "\n") {
		if macro, title, ok := strings.Cut(line, " "); ok && (macro == ".Sh" || macro == ".Ss") {
			name = title
			sections[name] = []string{}
			continue
		}
		sections[name] = append(sections[name], line)
	}
	return sections
}

// manCommands is every command that a user sees, by its path. Those of completion are its arguments in the page.
func manCommands(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	root := (&app{}).rootCommand()
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpFlag()
	all := map[string]*cobra.Command{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if !sub.Hidden && sub.Name() != "help" {
				all[sub.CommandPath()] = sub
				walk(sub)
			}
		}
	}
	walk(root)
	if len(all) < 15 {
		t.Fatalf("only %d commands", len(all))
	}
	return all
}

// item is the line that describes a flag.
func item(f *pflag.Flag) string {
	name, _ := pflag.UnquoteUsage(f)
	if name != "" {
		name = " Ar " + name
	}
	line := "Fl Fl " + f.Name + name
	if f.Shorthand != "" {
		line = "Fl " + f.Shorthand + name + " , " + line
	}
	return ".It " + line
}

const globalSection = "Options of every command"

// TestManPageIsComplete looks for everything that the program has.
func TestManPageIsComplete(t *testing.T) {
	page, commands := manPage(t), manCommands(t)
	wants := func(section, line string) {
		t.Helper()
		if !slices.Contains(page[section], line) {
			t.Errorf("section %q lacks: %s", section, line)
		}
	}
	root := (&app{}).rootCommand()
	root.InitDefaultHelpFlag()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { wants(globalSection, item(f)) })
	wants(globalSection, item(root.Flags().Lookup("help")))
	for path, c := range commands {
		section := path
		if words := strings.Fields(path); words[1] == "completion" && len(words) == 3 {
			section = "slotfetch completion"
			if !slices.ContainsFunc(page[section], func(l string) bool { return regexp.MustCompile(`^\.Cm .*\b` + words[2] + `\b`).MatchString(l) }) {
				t.Errorf("%s is not in the page", path)
			}
		}
		if page[section] == nil {
			t.Errorf("there is no section %q", section)
			continue
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				wants(section, item(f))
			}
		})
	}
	if got := itemsOf(page["EXIT STATUS"]); !maps.Equal(got, exitCodes(t)) {
		t.Errorf("EXIT STATUS has %v, the program %v", sortedKeys(got), sortedKeys(exitCodes(t)))
	}
	environment := strings.Join(page["ENVIRONMENT"], "\n")
	for _, name := range environmentOf(t) {
		if !strings.Contains(environment, name) {
			t.Errorf("ENVIRONMENT lacks %s", name)
		}
	}
}

// TestManPageIsTrue looks for everything in the program that the page names.
func TestManPageIsTrue(t *testing.T) {
	page, commands := manPage(t), manCommands(t)
	known := map[string]bool{"h": true, "help": true, "version": true}
	words := map[string]bool{}
	add := func(f *pflag.Flag) { known[f.Name], known[f.Shorthand] = true, true }
	(&app{}).rootCommand().PersistentFlags().VisitAll(add)
	for path, c := range commands {
		c.LocalNonPersistentFlags().VisitAll(add)
		for _, word := range strings.Fields(path) {
			words[word] = true
		}
	}
	var (
		flag    = regexp.MustCompile(`\bFl (?:Fl )?([A-Za-z0-9-]+)`)
		inline  = regexp.MustCompile(` --?([A-Za-z][a-z0-9-]*)`)
		command = regexp.MustCompile(`\bslotfetch ([a-z]+)`)
	)
	for section, lines := range page {
		if strings.HasPrefix(section, "slotfetch ") && commands[section] == nil {
			t.Errorf("there is no command %s", section)
		}
		for _, line := range lines {
			flags, named := flag.FindAllStringSubmatch(line, -1), command.FindAllStringSubmatch(line, -1)
			if len(named) > 0 {
				before, _, _ := strings.Cut(line[strings.Index(line, "slotfetch"):], " |") // not what is behind a pipe
				flags = append(flags, inline.FindAllStringSubmatch(before, -1)...)
			}
			for _, m := range flags {
				if !known[m[1]] {
					t.Errorf("section %q: there is no flag %s", section, m[1])
				}
			}
			if list, ok := strings.CutPrefix(line, ".Cm "); ok {
				for _, word := range strings.Fields(strings.NewReplacer("|", "", ",", "", ".", "", ";", "").Replace(list)) {
					named = append(named, []string{"", word})
				}
			}
			for _, m := range named {
				if !words[m[1]] {
					t.Errorf("section %q: there is no command %s", section, m[1])
				}
			}
		}
	}
}

// itemsOf are the plain items of a list.
func itemsOf(lines []string) map[string]bool {
	items := map[string]bool{}
	for _, line := range lines {
		if text, ok := strings.CutPrefix(line, ".It "); ok {
			items[text] = true
		}
	}
	return items
}

// exitCodes are the constants of exit.go.
func exitCodes(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("exit.go")
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\texit[A-Z]\w+\s+= (\d+)`).FindAllStringSubmatch(string(data), -1) {
		codes[m[1]] = true
	}
	return codes
}

// environmentOf is what the sources of the program read.
func environmentOf(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`(?:os\.Getenv|xdgDir)\("([A-Z_]+)"`).FindAllStringSubmatch(string(data), -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 5 {
		t.Fatalf("found only %v", names)
	}
	return names
}
