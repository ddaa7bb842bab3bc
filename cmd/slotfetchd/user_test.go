package main_test

import (
	"strings"
	"testing"
)

// TestUserDisable: who is shut out has no session any more, and comes back with the same password.
func TestUserDisable(t *testing.T) {
	t.Parallel()
	a := startAgent(t, "")
	c := a.user(t, "viewer")
	c.do(t, "GET", fetches, "").want(t, 200)
	a.run(t, "", "user", "disable", "viewer1")
	c.do(t, "GET", fetches, "").want(t, 401)
	c.do(t, "GET", "/api/authentication", "", "Authorization", basic("viewer1", "a password of viewer")).want(t, 401)
	list, err := a.command("user", "list").Output()
	check(t, err)
	if !strings.Contains(string(list), "disabled") {
		t.Errorf("%s", list)
	}
	a.run(t, "", "user", "enable", "viewer1")
	a.login(t, "viewer1", "a password of viewer").do(t, "GET", fetches, "").want(t, 200)
}

// TestMisspelt: a command that does not exist is no call for help that succeeds.
func TestMisspelt(t *testing.T) {
	t.Parallel()
	a := newAgent(t, "")
	for _, group := range []string{"user", "config", "db"} {
		out, err := a.command(group, "nope").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "unknown command") {
			t.Errorf("%s nope: %v: %s", group, err, out)
		}
	}
}
