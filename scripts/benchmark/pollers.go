package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A controller of many watches a download, or many controllers do: pollers of them, each over a connection of its own with
// Basic in each request, every pollEvery, as clients of ONTAP do.
const (
	pollers   = 1000
	pollEvery = 2 * time.Second
)

// crowd is all pollers of one job.
type crowd struct {
	stop context.CancelFunc
	wait sync.WaitGroup

	mu   sync.Mutex
	took []time.Duration
	errs []error
}

// gather connects all of them, a few at a time, and has them poll from moments that are spread over a period.
func gather(ctx context.Context, a *agent, job string) (*crowd, error) {
	ctx, stop := context.WithCancel(ctx)
	c := &crowd{stop: stop}
	request := "GET /api/cluster/jobs/" + job + " HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic " +
		base64.StdEncoding.EncodeToString([]byte("admin:"+a.password)) + "\r\n\r\n"
	conns := make([]*tls.Conn, pollers)
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it is our own agent, on loopback
	for i := range conns {
		conn, err := dialer.DialContext(ctx, "tcp", a.address)
		if err != nil {
			stop()
			return nil, fmt.Errorf("cannot connect poller %d: %w", i, err)
		}
		conns[i] = conn.(*tls.Conn)
	}
	for i, conn := range conns {
		c.wait.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			c.poll(ctx, conn, request, time.Duration(i)*pollEvery/pollers)
		})
	}
	return c, nil
}

func (c *crowd) poll(ctx context.Context, conn io.ReadWriter, request string, first time.Duration) {
	in := bufio.NewReaderSize(conn, 2048)
	for next := time.After(first); ; next = time.After(pollEvery) {
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		_, err := io.WriteString(conn, request)
		if err == nil {
			err = answer(in, "200")
		}
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.took = append(c.took, time.Since(began))
		if err != nil {
			c.errs = append(c.errs, err)
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// forgetTimes begins to measure anew.
func (c *crowd) forgetTimes() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = nil
}

// crowded looks how quickly a thousand pollers are answered while a download runs, and what they cost it.
func (b *bench) crowded(ctx context.Context) error {
	if b.short {
		return nil
	}
	fmt.Fprintln(os.Stderr, "pollers")
	server, url, err := startServer(nil, "-all", "100e6", b.image.path)
	if err != nil {
		return err
	}
	defer server.stop()
	dir := filepath.Join(b.dir, "pollers")
	a, err := startAgent(ctx, b.program, dir, b.own, 1)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	defer a.stop()
	if _, err := a.login(ctx); err != nil { // which reads the password
		return err
	}
	fetch := func() (time.Duration, error) {
		began := time.Now()
		if err := a.fetch(ctx, url, b.image.sha256, ""); err != nil {
			return 0, err
		}
		return time.Since(began), a.emptySlot(ctx)
	}
	var alone, among []time.Duration
	var took []time.Duration
	for range min(b.rounds, 3) {
		d, err := fetch()
		if err != nil {
			return err
		}
		alone = append(alone, d)
		job, err := a.lastFetch(ctx)
		if err != nil {
			return err
		}
		c, err := gather(ctx, a, job)
		if err != nil {
			return err
		}
		time.Sleep(pollEvery) // until all have asked once, and the password is known
		c.forgetTimes()
		d, err = fetch()
		c.stop()
		c.wait.Wait()
		if err = errors.Join(append(c.errs, err)...); err != nil {
			return fmt.Errorf("a poller got an error: %w", err)
		}
		among = append(among, d)
		took = append(took, c.took...)
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	b.atMost(fmt.Sprintf("%d pollers beside a download: 99 %% answered within, ms", pollers), "%.1f", float64(p99.Microseconds())/1000, 50, 10)
	b.atMost("the same: rate of the download lost, %", "%.1f", 100*(1-median(alone).Seconds()/median(among).Seconds()), 10, 2)
	peak, err := a.memory("VmHWM")
	b.fact("%d pollers: %d answers, half within %.1f ms; no error; agent, peak RSS: %.1f MiB", pollers, len(took), float64(took[len(took)/2].Microseconds())/1000, float64(peak)/mib)
	return err
}
