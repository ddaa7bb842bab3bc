package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"slotfetch/api"
)

// shortestKey is the least of a key that is taken for it.
const shortestKey = 4

// wholeKey tells whether s is a key in full. The length is checked because uuid.Parse takes other spellings too.
func wholeKey(s string) bool {
	return len(s) == 36 && uuid.Validate(s) == nil
}

// checkKey refuses what cannot be the beginning of a key.
func checkKey(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef-", r) }) || len(s) > 36 {
		return usage(fmt.Sprintf("%q is not a key", s), "See the keys with: slotfetch ls")
	}
	if len(s) < shortestKey {
		return usage(fmt.Sprintf("the key %q is too short", s), fmt.Sprintf("Give at least %d characters.", shortestKey))
	}
	return nil
}

// keys completes keys given by their beginning. The list of the box is asked for only when it is needed.
func (c *client) keys(ctx context.Context, args []string) ([]string, error) {
	var list *api.FetchList
	keys := make([]string, 0, len(args))
	taken := map[string]bool{}
	for _, arg := range args {
		key := strings.ToLower(arg)
		if !wholeKey(key) {
			if err := checkKey(key); err != nil {
				return nil, err
			}
			if c.app.curl {
				return nil, usage("--curl needs whole keys", "See them with: slotfetch ls")
			}
			if list == nil {
				l, err := c.fetches(ctx)
				if err != nil {
					return nil, err
				}
				list = &l
			}
			var err error
			if key, err = complete(key, *list); err != nil {
				return nil, err
			}
		}
		if !taken[key] {
			taken[key] = true
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// complete finds the only key that begins with prefix.
func complete(prefix string, list api.FetchList) (string, error) {
	var found []string
	for _, f := range list.Items {
		if strings.HasPrefix(f.Key, prefix) {
			found = append(found, f.Key)
		}
	}
	switch len(found) {
	case 0:
		return "", &failure{code: exitNotFound, kind: "ResourceNotFound", message: fmt.Sprintf("no fetch has a key that begins with %q", prefix),
			hint: "See the keys with: slotfetch ls"}
	case 1:
		return found[0], nil
	}
	return "", usage(fmt.Sprintf("%d keys begin with %q", len(found), prefix), "Give more of it:\n  "+strings.Join(found, "\n  "))
}

// completionLimit keeps the shell responsive when the box is not.
const completionLimit = 3 * time.Second

// completeKeys offers the keys of the fetches that accept picks.
func (a *app) completeKeys(accept func(status string) bool, many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var list api.FetchList
		a.lookQuietly(cmd, func(ctx context.Context, c *client) {
			list, _ = c.fetches(ctx)
		})
		taken := map[string]bool{}
		for _, key := range args {
			taken[key] = true
		}
		var words []cobra.Completion
		for _, f := range list.Items {
			if !taken[f.Key] && accept(f.Body.Status) {
				words = append(words, cobra.CompletionWithDesc(f.Key, f.Body.Status+" "+clean(imageName(f.Body.URL))))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSlots offers the numbers of the slots that accept picks.
func (a *app) completeSlots(accept func(api.SlotBody) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var list api.SlotList
		a.lookQuietly(cmd, func(ctx context.Context, c *client) {
			list, _ = c.slots(ctx)
		})
		var words []cobra.Completion
		for _, s := range list.Items {
			if accept(s.Body) {
				version := clean(s.Body.Version)
				if s.Body.Empty() {
					version = "empty"
				}
				words = append(words, cobra.CompletionWithDesc(s.Key, version))
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// lookQuietly asks the box for a completion: no question, no message, not for long.
func (a *app) lookQuietly(cmd *cobra.Command, look func(context.Context, *client)) {
	a.noInput, a.quiet, a.verbose = true, true, false
	c, err := a.open()
	if err != nil {
		return
	}
	defer c.close()
	c.firstUse = firstUseFail
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completionLimit)
	defer cancel()
	look(ctx, c)
}
