package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// compare races the agent, the peers and the limits over HTTP, HTTPS and FTP.
func (b *bench) compare(ctx context.Context) error {
	idle, err := b.agent.memory("VmRSS")
	if err != nil {
		return err
	}
	b.fact("agent, RSS idle before the first fetch: %.1f MiB", float64(idle)/mib)
	plain, url, err := startServer(nil, b.image.path)
	if err != nil {
		return err
	}
	defer plain.stop()
	secure, secureURL, err := startServer(nil, "-pem", b.bothFile, b.image.path)
	if err != nil {
		return err
	}
	defer secure.stop()
	origins := []served{{image: b.image, url: url}, {image: b.image, url: secureURL, ca: b.cert, caFile: b.certFile}}
	if ftp, ftpURL, err := startFTP(b.image.dir(), filepath.Join(b.dir, "vsftpd.conf")); err != nil {
		b.leaveOut("FTP", err)
	} else {
		defer ftp.stop()
		origins = append(origins, served{image: b.image, url: ftpURL})
	}

	disk := b.piping("limit: direct write and sync, no hash", "",
		fmt.Sprintf("dd if=%s of=%s bs=1M oflag=direct conv=fdatasync status=none", b.image.path, b.file))
	all := []*contestant{disk}
	var sets []set
	for _, o := range origins {
		s := set{scheme: o.scheme(), fetch: b.fetching(o.scheme()+": slotfetchd, POST to finished", b.agent, o)}
		s.tee, s.aria, s.others = b.peersOf(o)
		all = append(append(append(all, s.fetch, s.tee), s.aria...), s.others...)
		if !b.short || s.scheme == "HTTP" {
			s.network = netHash(o)
			all = append(all, s.network)
		}
		sets = append(sets, s)
	}
	if err := b.race(ctx, "compare", b.rounds, all...); err != nil {
		return err
	}
	for _, s := range sets {
		b.figuresOf(s, disk)
	}
	if len(b.left) > 0 {
		b.atMost("image left in the page cache, %", "%.1f", 100*median(b.left), 1, 0)
	}
	peak, err := b.agent.memory("VmHWM")
	b.atMost("agent, peak RSS with one fetch, MiB", "%.1f", float64(peak)/mib, 32, 25)
	return err
}

// set is what runs over one protocol. Each may be nil or empty but fetch and tee.
type set struct {
	scheme              string
	fetch, tee, network *contestant
	aria, others        []*contestant
}

func (b *bench) figuresOf(s set, disk *contestant) {
	took := s.fetch.seconds()
	best := s.tee
	for _, c := range append(s.aria, s.others...) {
		if c.seconds() < best.seconds() {
			best = c
		}
	}
	ratio := best.seconds() / took
	cpu := map[string][2]float64{"HTTP": {2, 1.4}, "HTTPS": {2.2, 1.7}, "FTP": {1.8, 1.3}}[s.scheme]
	switch s.scheme {
	case "HTTP":
		b.atLeast("HTTP against the best peer, x", "%.2f", ratio, 1.8, 2.2)
	case "HTTPS":
		b.atLeast("HTTPS against the best peer, x", "%.2f", ratio, 1.5, 2)
	case "FTP":
		b.atLeast("FTP against curl | tee | openssl, x", "%.2f", s.tee.seconds()/took, 2, 2.8)
	}
	b.fact("%s: the best peer is %q", s.scheme, best.name)
	if len(s.aria) > 0 && s.scheme != "HTTPS" { // there the server's share is the most, and aria2c among the peers of the bar above
		least := s.aria[0]
		for _, c := range s.aria {
			if c.seconds() < least.seconds() {
				least = c
			}
		}
		b.atLeast(s.scheme+" against aria2c with any -x, x", "%.2f", least.seconds()/took, 3, 4.5)
	}
	if s.network != nil {
		b.atLeast(s.scheme+" against the slower limit", "%.2f", max(s.network.seconds(), disk.seconds())/took, 0.75, 0.95)
	}
	busy := median(s.fetch.busy).Seconds() / (float64(b.image.size) / (1 << 30))
	b.atMost(s.scheme+": CPU seconds a GiB", "%.2f", busy, cpu[0], cpu[1])
}

// A box that has work to do needs its page cache: warmSize bytes that are in use stay below tight together with a fetch.
const warmSize, tight = 300 * mib, 512 // bytes, MiB

// warm looks what a fetch evicts.
func (b *bench) warm(ctx context.Context) error {
	if b.own == nil {
		b.leaveOut("warm set", errors.New("it needs memory control groups"))
		return nil
	}
	file := filepath.Join(b.dir, "warm")
	if err := os.WriteFile(file, make([]byte, warmSize), 0o644); err != nil {
		return err
	}
	defer os.Remove(file)
	server, url, err := startServer(nil, b.image.path)
	if err != nil {
		return err
	}
	defer server.stop()
	if err := b.limit(tight); err != nil {
		return err
	}
	s := served{image: b.image, url: url}
	tee, _, _ := b.peersOf(s)
	for _, c := range []struct {
		group *group
		*contestant
	}{{b.own, b.fetching("slotfetchd", b.agent, s)}, {b.peers, tee}} {
		fmt.Fprintln(os.Stderr, "warm set:", c.name)
		if err := forget(file); err != nil {
			return err
		}
		for range 3 {
			if _, err := shell(ctx, c.group.command("cat", file), ""); err != nil {
				return err
			}
		}
		before, ok := cached(file)
		if !ok || before == 0 {
			b.leaveOut("warm set", errors.New("fincore (util-linux) does not tell"))
			break
		}
		if _, err := c.run(ctx); err != nil {
			return err
		}
		after, _ := cached(file)
		evicted := 100 * float64(before-after) / float64(before)
		if c.group == b.own {
			b.atMost("warm set evicted by a fetch, %", "%.1f", evicted, 1, 0)
		} else {
			b.fact("warm set evicted by %s: %.1f %%", c.name, evicted)
		}
		if err := c.reset(ctx); err != nil {
			return err
		}
	}
	return b.limit(b.memory)
}

// forget writes a file out and takes it out of the page cache.
func forget(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

// ranges looks what several connections bring where each is limited, and cost where they are limited together.
func (b *bench) ranges(ctx context.Context) error {
	size, rounds := int64(512), min(b.rounds, 3)
	if b.short {
		size, rounds = 128, 1
	}
	img, err := makeImage(size * mib)
	if err != nil {
		return err
	}
	b.later(img.remove)
	server, url, err := startServer(nil, "-trip", "50ms", "-each", "25e6", img.path)
	if err != nil {
		return err
	}
	defer server.stop()
	one, err := b.start(ctx, "one", b.own, 1)
	if err != nil {
		return err
	}
	eight, err := b.start(ctx, "eight", b.own, 8)
	if err != nil {
		return err
	}
	s := served{image: img, url: url}
	alone := b.fetching("slotfetchd, one connection", one, s)
	together := b.fetching("slotfetchd, 8 connections", eight, s)
	all := []*contestant{alone, together}
	var aria *contestant
	if !b.short {
		all = append(all, b.fetching("slotfetchd, automatic", b.agent, s))
		if b.aria {
			aria = b.ariaOf(s, 8)
			all = append(all, aria)
		}
	}
	if err := b.race(ctx, fmt.Sprintf("%d MiB, 50 ms, 25 MB/s for each connection", size), rounds, all...); err != nil {
		return err
	}
	b.atLeast("capped server: 8 ranges against one, x", "%.2f", alone.seconds()/together.seconds(), 5, 6.5)
	if aria != nil {
		b.atLeast("capped server: 8 ranges against aria2c -x8, x", "%.2f", aria.seconds()/together.seconds(), 1, 1.5)
	}
	peak, err := eight.memory("VmHWM")
	b.fact("agent, peak RSS with 8 ranges: %.1f MiB", float64(peak)/mib)
	if b.short || err != nil {
		return err
	}
	shared, url, err := startServer(nil, "-trip", "50ms", "-all", "50e6", img.path)
	if err != nil {
		return err
	}
	defer shared.stop()
	s.url = url
	alone, auto := b.fetching("slotfetchd, one connection", one, s), b.fetching("slotfetchd, automatic", b.agent, s)
	if err := b.race(ctx, fmt.Sprintf("%d MiB, 50 ms, 50 MB/s together", size), rounds, alone, auto); err != nil {
		return err
	}
	b.atMost("shared link: loss by automatic ranges, %", "%.1f", 100*(auto.seconds()/alone.seconds()-1), 3, 0)
	return nil
}

// gigabit races the agent against a link of 1 Gbit/s. There it has no reason to add connections.
func (b *bench) gigabit(ctx context.Context) error {
	if b.short {
		return nil
	}
	l, err := newLink()
	if err != nil {
		b.leaveOut("1 Gbit/s link", err)
		return nil
	}
	b.later(l.remove)
	server, url, err := startServer(l.command, "-address", beyond, b.image.path)
	if err != nil {
		return err
	}
	defer server.stop()
	s := served{image: b.image, url: url}
	line := b.piping("curl -o /dev/null: the link", "", "curl -sf -o /dev/null "+url)
	auto := b.fetching("slotfetchd, POST to finished", b.agent, s)
	if err := b.race(ctx, "1 Gbit/s", min(b.rounds, 3), line, auto); err != nil {
		return err
	}
	b.atLeast("1 Gbit/s: fraction of the link, verified and durable", "%.3f", line.seconds()/auto.seconds(), 0.98, 0.995)
	return nil
}
