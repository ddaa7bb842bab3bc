package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"slotfetch/api"
)

const clients = 16

// load has clients send request over one connection each, one after the other, for span, and tells how many were answered
// with status in a second. It is no net/http, which would take more of the processor than the agent does.
func load(ctx context.Context, dial func(context.Context) (net.Conn, error), request string, status string, span time.Duration) (float64, error) {
	var done atomic.Int64
	var group sync.WaitGroup
	errs := make([]error, clients)
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	began := time.Now()
	for i := range clients {
		group.Go(func() {
			c, err := dial(ctx)
			if err != nil {
				errs[i] = err
				return
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			in := bufio.NewReader(c)
			for errs[i] == nil && time.Since(began) < span {
				if _, errs[i] = io.WriteString(c, request); errs[i] == nil {
					errs[i] = answer(in, status)
				}
				done.Add(1)
			}
		})
	}
	group.Wait()
	return float64(done.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

// answer reads one answer, which has to have a length and the status wanted.
func answer(in *bufio.Reader, status string) error {
	first, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(first)); !strings.HasPrefix(got, "HTTP/1.1 "+status) {
		return fmt.Errorf("the agent answered %q", got)
	}
	length := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		text := strings.TrimSpace(string(line))
		if text == "" {
			break
		}
		if v, ok := strings.CutPrefix(text, "Content-Length: "); ok {
			if length, err = strconv.Atoi(v); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return errors.New("the agent gave no Content-Length")
	}
	_, err = in.Discard(length)
	return err
}

// rates uses an agent of its own, because what is posted stays. Its one worker hangs at a server that never answers.
func (b *bench) rates(ctx context.Context) error {
	span := 5 * time.Second
	if b.short {
		span = time.Second
	}
	fmt.Fprintln(os.Stderr, "requests")
	server, url, err := startServer(nil, b.image.path)
	if err != nil {
		return err
	}
	defer server.stop()
	dir := filepath.Join(b.dir, "rates")
	a, err := startAgent(ctx, b.program, dir, b.own, 0)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer a.stop()
	local := func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.dir, "s"))
	}
	body := order(strings.TrimSuffix(url, "/image.iso")+"/mute", strings.Repeat("0", 64), "", 1)
	var f api.Fetch
	if err := a.call(ctx, "POST", "/fetch", body, http.StatusAccepted, &f); err != nil {
		return err
	}
	const path = "/api/firmware/fetch"
	head := " HTTP/1.1\r\nHost: localhost\r\n"
	post, err := load(ctx, local, fmt.Sprintf("POST %s%sContent-Length: %d\r\n\r\n%s", path, head, len(body), body), "202", span)
	if err != nil {
		return fmt.Errorf("cannot measure POST: %w", err)
	}
	get := "GET " + path + "/" + f.Key + head
	inTheClear, err := load(ctx, local, get+"\r\n", "200", span)
	if err != nil {
		return fmt.Errorf("cannot measure GET: %w", err)
	}
	cookie, err := a.login(ctx)
	if err != nil {
		return err
	}
	secure := func(ctx context.Context) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it is our own agent, on loopback
		return d.DialContext(ctx, "tcp", a.address)
	}
	overTLS, err := load(ctx, secure, get+"Cookie: "+cookie+"\r\n\r\n", "200", span)
	if err != nil {
		return fmt.Errorf("cannot measure GET over TLS: %w", err)
	}
	b.atLeast("POST, durable, a second; 16 clients, unix socket", "%.0f", post, 3000, 8000)
	b.atLeast("GET one fetch, a second; 16 clients, unix socket", "%.0f", inTheClear, 12000, 25000)
	b.fact("GET one fetch, 16 clients, TLS with keep-alive and a session: %.0f a second", overTLS)
	return nil
}

// logins tells what 20 of them leave in memory.
func (b *bench) logins(ctx context.Context) error {
	for range 20 {
		if _, err := b.agent.login(ctx); err != nil {
			return err
		}
	}
	now, err1 := b.agent.memory("VmRSS")
	peak, err2 := b.agent.memory("VmHWM")
	b.atMost("agent, peak RSS after 20 logins too, MiB", "%.1f", float64(peak)/mib, 32, 25)
	b.fact("agent, RSS right after 20 logins: %.1f MiB", float64(now)/mib)
	return errors.Join(err1, err2)
}

// login logs admin in over HTTPS and returns the cookie. The file with the password goes away at the first login.
func (a *agent) login(ctx context.Context) (string, error) {
	if a.password == "" {
		text, err := os.ReadFile(filepath.Join(a.dir, "state", "initial-admin-password"))
		if err != nil {
			return "", err
		}
		a.password = strings.TrimSpace(string(text))
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+a.address+"/api/authentication", nil)
	if err != nil {
		return "", err
	}
	r.SetBasicAuth("admin", a.password)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // it is our own agent, on loopback
	resp, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || len(resp.Cookies()) == 0 {
		return "", fmt.Errorf("cannot log in: %s", resp.Status)
	}
	c := resp.Cookies()[0]
	return c.Name + "=" + c.Value, nil
}
