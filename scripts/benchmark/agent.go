package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"slotfetch/api"
)

// agent is a slotfetchd, driven over its local socket.
type agent struct {
	*process
	dir      string
	address  string // of its HTTPS port
	password string // of admin, once it was read
	http     *http.Client
	log      chan []string // its last lines, when it has ended
}

// pause is the time between two looks: 0.5 % of a short fetch, and a look costs the agent a tenth of a millisecond.
const pause = 10 * time.Millisecond

// startAgent runs program in g with its state below dir, and the number of connections that fetch.connections asks for.
func startAgent(ctx context.Context, program, dir string, g *group, connections int) (*agent, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "s")
	config := fmt.Sprintf("state_dir = %q\n[api]\nlisten = \"127.0.0.1:0\"\nconnections = 1200\nconnections_per_address = 1200\n[local]\nsocket = %q\n[fetch]\nconnections = %d\n"+
		"[egress]\nallow = [\"127.0.0.0/8\", \"%s/32\"]\n", filepath.Join(dir, "state"), socket, connections, beyond)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	p, stderr, err := start(g.command(program, "--config", file, "serve"), true)
	if err != nil {
		return nil, fmt.Errorf("cannot start the agent: %w", err)
	}
	a := &agent{process: p, dir: dir, log: make(chan []string, 1), http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}}}
	ready := make(chan string, 1)
	go func() {
		var text []string
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			text = append(text[max(0, len(text)-9):], lines.Text())
			if _, rest, ok := strings.Cut(lines.Text(), `msg="agent ready" listen=`); ok {
				ready <- strings.Fields(rest)[0]
			}
		}
		a.log <- text
		close(ready)
	}()
	select {
	case a.address = <-ready:
		if a.address != "" {
			return a, nil
		}
		return nil, errors.Join(errors.New("the agent did not start"), a.lastWords())
	case <-ctx.Done():
		a.stop()
		return nil, ctx.Err()
	}
}

// lastWords stops the agent and gives the end of its log.
func (a *agent) lastWords() error {
	_ = a.cmd.Process.Kill()
	return errors.New("the agent's log ends so:\n" + strings.Join(<-a.log, "\n"))
}

func (a *agent) slotImage() string { return filepath.Join(a.dir, "state", "slots", "1", "image") }

// call makes one request; out is what the answer is read into, if not nil.
func (a *agent) call(ctx context.Context, method, path, body string, want int, out any) error {
	r, err := http.NewRequestWithContext(ctx, method, "http://localhost/api/firmware"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := a.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var raw json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&raw); err != nil {
		return err
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, raw)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

// order is the body of a POST. ca may be empty.
func order(url, sha256, ca string, slot int) string {
	o := map[string]any{"url": url, "checksum": map[string]string{"sha256": sha256}, "slot_id": slot}
	if ca != "" {
		o["tls"] = map[string]string{"ca": ca}
	}
	text, _ := json.Marshal(o) // it holds nothing that cannot be encoded
	return string(text)
}

// fetch starts a fetch into slot 1 and waits until it has finished.
func (a *agent) fetch(ctx context.Context, url, sha256, ca string) error {
	var f api.Fetch
	if err := a.call(ctx, "POST", "/fetch", order(url, sha256, ca, 1), http.StatusAccepted, &f); err != nil {
		return err
	}
	for {
		if err := a.call(ctx, "GET", "/fetch/"+f.Key, "", http.StatusOK, &f); err != nil {
			return err
		}
		switch f.Body.Status {
		case "finished":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("the fetch is %s: %s", f.Body.Status, *f.Body.Error)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lastFetch is the key of the one that was asked for last.
func (a *agent) lastFetch(ctx context.Context) (string, error) {
	var list api.FetchList
	err := a.call(ctx, "GET", "/fetch", "", http.StatusOK, &list)
	if err == nil && len(list.Items) == 0 {
		err = errors.New("there is no fetch")
	}
	if err != nil {
		return "", err
	}
	return list.Items[len(list.Items)-1].Key, nil
}

func (a *agent) emptySlot(ctx context.Context) error {
	return a.call(ctx, "DELETE", "/slots/1", "", http.StatusOK, nil)
}

// memory is a field of /proc/PID/status in bytes: VmRSS is now, VmHWM the most so far.
func (a *agent) memory(field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.pid()))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\n"+field+":")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0, fmt.Errorf("no %s in /proc: %w", field, err)
	}
	return kib << 10, nil
}

// processor is the processor time so far. The kernel counts it in hundredths of a second.
func (a *agent) processor() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.pid()))
	if err != nil {
		return 0, err
	}
	// utime and stime are fields 14 and 15, and the name before them may hold blanks: proc(5).
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var user, system int64
	_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return time.Duration(user+system) * (time.Second / 100), err
}
