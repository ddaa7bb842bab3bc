package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// wants checks the number of arguments as cobra.RangeArgs does, and shows how the command is written. Below zero,
// most is no limit.
func wants(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
		hint := "Write: " + cmd.Parent().CommandPath() + " " + cmd.Use
		switch {
		case len(args) < least:
			return usage(name+": an argument is missing", hint)
		case most < 0 || len(args) <= most:
			return nil
		case most == 0:
			return usage(fmt.Sprintf("%s takes no argument such as %q", name, args[0]), hint)
		}
		return usage(fmt.Sprintf("%s takes only one argument: %q is too much", name, args[most]), hint)
	}
}

// wantsCommand is for a command that has others below it: an argument of its own is one of those, misspelt.
func wantsCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := "See: " + cmd.CommandPath() + " --help"
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		hint = "Did you mean: " + cmd.CommandPath() + " " + strings.Join(like, ", or "+cmd.CommandPath()+" ")
	}
	return usage(fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath()), hint)
}

// badFlag words what the parser of the flags says for people who do not write Go.
func badFlag(cmd *cobra.Command, err error) error {
	hint := "See: " + cmd.CommandPath() + " --help"
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return usage(err.Error(), hint)
	}
	flag := bad.GetFlag()
	switch flag.Value.Type() {
	case "int":
		hint = "Give a whole number."
	case "duration":
		hint = "Give a number and its unit: 90s, 15m, 1h30m."
	case "bool":
		hint = "Give true or false."
	}
	return usage(fmt.Sprintf("%q is no value for --%s", bad.GetValue(), flag.Name), hint)
}

// exclusive is how cobra words flags that exclude each other.
var exclusive = regexp.MustCompile(`^if any flags in the group \[.*\] are set none of the others can be; \[(.*)\] were all set$`)

// fromParser is a failure of what cobra has found wrong by itself.
func fromParser(err error) *failure {
	message := err.Error()
	if m := exclusive.FindStringSubmatch(message); m != nil {
		message = "--" + strings.Join(strings.Fields(m[1]), " and --") + " exclude each other"
	}
	return &failure{code: exitUsage, kind: "Usage", message: message, hint: "See: slotfetch --help"}
}
