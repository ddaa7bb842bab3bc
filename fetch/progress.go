package fetch

import (
	"sync"
	"time"

	"slotfetch/fetch/source"
	"slotfetch/store"
)

// rateSpan is over how long the rate is taken.
const rateSpan = 5 * time.Second

// progress is what a running fetch says of itself between two rows. Whoever asks reads it; nothing ticks.
type progress struct {
	now func() time.Time

	mu          sync.Mutex
	phase       store.Phase
	attempts    int
	downloaded  int64
	total       int64 // 0: unknown
	tlsVerified *bool
	resumedFrom int64
	next        time.Time // of the last pause: when the next attempt comes,
	reason      string    // why there has to be one,
	code        string    // and the code of that error
	samples     []sample  // oldest first, spanning about rateSpan
	alive       time.Time // the last sign of life
}

type sample struct {
	at    time.Time
	bytes int64
}

// add counts bytes read and gives the count.
func (p *progress) add(n int) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.downloaded += int64(n)
	now := p.now()
	p.alive = now
	if k := len(p.samples); k > 0 && now.Sub(p.samples[k-1].at) < rateSpan/20 {
		return p.downloaded
	}
	for len(p.samples) > 1 && now.Sub(p.samples[1].at) >= rateSpan {
		p.samples = p.samples[1:]
	}
	p.samples = append(p.samples, sample{now, p.downloaded})
	return p.downloaded
}

// resumed notes where the attempt began.
func (p *progress) resumed(from int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resumedFrom = from
}

// stream notes where an attempt's bytes begin and how many there will be.
func (p *progress) stream(offset, total int64, tlsVerified *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.downloaded, p.total = offset, max(total, 0)
	if tlsVerified != nil {
		p.tlsVerified = tlsVerified
	}
	p.alive = p.now()
	p.samples = append(p.samples[:0:0], sample{p.alive, offset})
}

// beat is a sign of life where nothing else changes.
func (p *progress) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive = p.now()
}

// silent is for how long there was no sign of life. Waiting for the next attempt is silent on purpose.
func (p *progress) silent() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase == store.Waiting {
		return 0
	}
	return p.now().Sub(p.alive)
}

func (p *progress) set(phase store.Phase, attempts int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.attempts, p.alive = phase, attempts, p.now()
	if phase != store.Downloading {
		p.samples = nil
	}
}

// pause notes, before the phase is waiting, for how long it will be, and the error because of which.
func (p *progress) pause(d time.Duration, why *source.Error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next, p.reason, p.code = p.now().Add(d), why.Message, why.Code
}

// counts are the bytes so far and the total, 0 if unknown.
func (p *progress) counts() (downloaded, total int64, tlsVerified *bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.downloaded, p.total, p.tlsVerified
}

// overlay puts what is live over the row f. A fetch that waits gets the code of the error because of which it does.
func (p *progress) overlay(f store.Fetch) store.Fetch {
	p.mu.Lock()
	defer p.mu.Unlock()
	f.BytesDownloaded, f.BytesTotal = p.downloaded, p.total
	f.Attempts, f.ResumedFrom = max(f.Attempts, p.attempts), p.resumedFrom
	if p.phase == store.Waiting {
		f.NextAttempt, f.RetryReason, f.ErrorCode = p.next, p.reason, p.code
	}
	if p.tlsVerified != nil {
		f.TLSVerified = p.tlsVerified
	}
	if f.Phase != store.Installing {
		f.Phase = p.phase
	}
	f.BytesPerSecond = nil
	if f.Phase == store.Downloading && len(p.samples) > 0 {
		rate := int64(0)
		if d := p.now().Sub(p.samples[0].at); d > 0 && p.now().Sub(p.alive) < rateSpan {
			rate = int64(float64(p.downloaded-p.samples[0].bytes) / d.Seconds())
		}
		f.BytesPerSecond = &rate
	}
	return f
}
