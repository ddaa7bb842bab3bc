package fetch

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"slotfetch/api"
	"slotfetch/store"
)

// This file reads the fields that say when, in which order and how fast: of a POST, and of a PATCH.

// maxPriority bounds the priority in both directions.
const maxPriority = 1000

// ParseChange reads what both may have. Its errors are *api.Error.
func ParseChange(o api.Object) (Change, error) {
	var c Change
	var err error
	if c.Paused, err = o.Bool("paused"); err != nil {
		return c, err
	}
	expected := fmt.Sprintf("a number between -%d and %d", maxPriority, maxPriority)
	if c.Priority, err = o.Int("priority", expected); err != nil {
		return c, err
	}
	if c.Priority != nil && (*c.Priority < -maxPriority || *c.Priority > maxPriority) {
		return c, api.Semantic("priority", expected)
	}
	expected = fmt.Sprintf("bytes a second, between %d and 999999999, or 0 for no limit", MinRate)
	limit, err := o.Int("rate_limit", expected)
	if err != nil {
		return c, err
	}
	if limit != nil {
		if *limit != 0 && *limit < MinRate {
			return c, api.Semantic("rate_limit", expected)
		}
		n := int64(*limit)
		c.RateLimit = &n
	}
	if o.Has("not_before") {
		expected := "a time such as 2026-05-04T22:00:00+02:00, or empty for none"
		text, err := o.String("not_before", expected)
		if err != nil {
			return c, err
		}
		c.NotBefore = new(time.Time)
		if text != "" {
			if *c.NotBefore, err = time.Parse(time.RFC3339, text); err != nil {
				return c, api.Semantic("not_before", expected)
			}
		}
	}
	if o.Has("window") {
		expected := "a daily window such as 22:00-04:00, or empty for none"
		text, err := o.String("window", expected)
		if err != nil {
			return c, err
		}
		w, err := ParseWindow(text)
		if err != nil {
			return c, api.Semantic("window", expected)
		}
		c.Window = &w
	}
	return c, nil
}

// parsePatch reads the whole body of a PATCH, which may also have a place in the queue.
func parsePatch(o api.Object) (Change, error) {
	c, err := ParseChange(o)
	if err != nil {
		return c, err
	}
	const field, expected = "position", `"first", "last" or "before:" and the key of another queued fetch`
	if o.Has(field) {
		text, err := o.String(field, expected)
		if err != nil {
			return c, err
		}
		switch {
		case text == "first":
			c.Place = &store.Place{First: true}
		case text == "last":
			c.Place = &store.Place{Last: true}
		default:
			key, ok := strings.CutPrefix(text, "before:")
			if !ok || uuid.Validate(key) != nil || len(key) != 36 {
				return c, api.Semantic(field, expected)
			}
			c.Place = &store.Place{Before: strings.ToLower(key)}
		}
	}
	if c == (Change{}) {
		e := api.Missing("paused", "")
		e.Message = "There is nothing to change: give paused, priority, rate_limit, not_before, window or position."
		return c, e
	}
	return c, nil
}
