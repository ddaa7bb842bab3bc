package fetchtest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Fault is what happens in the middle of a transfer.
type Fault int

const (
	// None: the transfer ends well.
	None Fault = iota
	// Stall sends nothing more until it is released or the client goes.
	Stall
	// FIN ends the connection in order.
	FIN
	// RST resets it. What was sent just before may get lost.
	RST
	// Drip goes on with one byte in Pause.
	Drip
	// NoAnswer takes the connection and says nothing, until it is released or the client goes.
	NoAnswer
)

// File serves an image; [Whole] makes a well-behaved one, each field a difference.
type File struct {
	Image *Image
	// ETag is sent as it is; empty: none.
	ETag string
	// Modified is Last-Modified; zero: none.
	Modified time.Time
	// Header has more header lines, such as "Content-Encoding: gzip".
	Header []string
	// Fault happens after After bytes of this answer's body.
	Fault Fault
	After int64
	// Pause is the time between two bytes of a Drip.
	Pause time.Duration
	// Length is announced instead of the true length; -1 announces none and ends the body by closing.
	Length int64
	// Chunked announces no length and sends chunks. A Fault at the image's end leaves out the terminator.
	Chunked bool
	// HTTP10 answers in HTTP/1.0, which has no chunks.
	HTTP10 bool
	// NoRange answers 200 to every Range, NoIfRange answers 206 without looking at If-Range.
	NoRange, NoIfRange bool
	// Ends looks at the end of a Range, too; without, such a Range is answered like none.
	Ends bool
	// ContentRange replaces the Content-Range of a 206; "-" leaves it out.
	ContentRange string
}

// Whole is a file as a good server has it: strong ETag, Last-Modified, ranges.
func Whole(img *Image) File {
	return File{Image: img, ETag: strconv.Quote(img.SHA256()[:16]), Modified: time.Date(2020, 5, 4, 8, 0, 1, 0, time.UTC)}
}

// Serve is the [Handler] of f.
func (f File) Serve(x *Exchange) {
	if f.Fault == NoAnswer {
		Mute(x)
		return
	}
	size, from := f.Image.Size(), int64(0)
	to := size
	status := http.StatusOK
	var lines []string
	if start, end, ok := f.span(x); ok && start >= size {
		Status(http.StatusRequestedRangeNotSatisfiable, fmt.Sprintf("Content-Range: bytes */%d", size))(x)
		return
	} else if ok {
		status, from, to = http.StatusPartialContent, start, end
		switch f.ContentRange {
		case "":
			lines = append(lines, fmt.Sprintf("Content-Range: bytes %d-%d/%d", start, end-1, size))
		case "-":
		default:
			lines = append(lines, "Content-Range: "+f.ContentRange)
		}
	}
	switch {
	case f.Chunked:
		lines = append(lines, "Transfer-Encoding: chunked")
	case f.Length > 0:
		lines = append(lines, fmt.Sprintf("Content-Length: %d", f.Length))
	case f.Length == 0:
		lines = append(lines, fmt.Sprintf("Content-Length: %d", to-from))
	}
	if f.ETag != "" {
		lines = append(lines, "ETag: "+f.ETag)
	}
	if !f.Modified.IsZero() {
		lines = append(lines, "Last-Modified: "+f.Modified.UTC().Format(http.TimeFormat))
	}
	proto := "HTTP/1.1"
	if f.HTTP10 {
		proto = "HTTP/1.0"
	}
	head(x, proto, status, append(lines, f.Header...))
	if x.Method != http.MethodHead {
		f.body(x, io.NewSectionReader(f.Image, from, to-from))
	}
}

// span is the part of the file that is asked for, without its end; ok is false if the answer is the whole file.
func (f File) span(x *Exchange) (start, end int64, ok bool) {
	part, ok := strings.CutPrefix(x.Header.Get("Range"), "bytes=")
	from, to, dash := strings.Cut(part, "-")
	start, err := strconv.ParseInt(from, 10, 64)
	if !ok || !dash || err != nil || f.NoRange {
		return 0, 0, false
	}
	end = f.Image.Size()
	if to != "" {
		last, err := strconv.ParseInt(to, 10, 64)
		if err != nil || !f.Ends {
			return 0, 0, false
		}
		end = min(end, last+1)
	}
	cond := x.Header.Get("If-Range")
	strong := f.ETag != "" && !strings.HasPrefix(f.ETag, "W/") && cond == f.ETag
	dated := !f.Modified.IsZero() && cond == f.Modified.UTC().Format(http.TimeFormat)
	return start, end, cond == "" || strong || dated || f.NoIfRange
}

func (f File) body(x *Exchange, r *io.SectionReader) {
	var w io.Writer = x
	if f.Chunked {
		w = chunks{x}
	}
	if f.Fault != None {
		_, _ = io.CopyN(w, r, f.After)
		switch f.Fault {
		case FIN, RST:
			x.Cut(f.Fault == RST)
			return
		case Stall:
			if !x.Stall() {
				return
			}
		case Drip:
			for x.Pause(f.Pause) {
				if _, err := io.CopyN(w, r, 1); err != nil {
					break
				}
			}
		}
	}
	if _, err := io.Copy(w, r); err == nil && f.Chunked {
		x.Printf("0\r\n\r\n")
	}
}

// chunks writes each piece as one chunk.
type chunks struct{ x *Exchange }

func (c chunks) Write(p []byte) (int, error) {
	c.x.Printf("%x\r\n", len(p))
	n, err := c.x.Write(p)
	c.x.Printf("\r\n")
	return n, err
}

func head(x *Exchange, proto string, status int, lines []string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %s\r\nDate: %s\r\nConnection: close\r\n", proto, status, http.StatusText(status), time.Now().UTC().Format(http.TimeFormat))
	for _, l := range lines {
		b.WriteString(l + "\r\n")
	}
	x.Printf("%s\r\n", b.String())
}

// Status answers with a status and header lines, such as "Retry-After: 1", and no body.
func Status(code int, lines ...string) Handler {
	return func(x *Exchange) { head(x, "HTTP/1.1", code, append([]string{"Content-Length: 0"}, lines...)) }
}

// Redirect answers 302 with the Location as it is given.
func Redirect(location string) Handler { return Status(http.StatusFound, "Location: "+location) }

// Raw writes text and ends the connection.
func Raw(text string) Handler {
	return func(x *Exchange) { x.Printf("%s", text) }
}

// Mute never answers, or only after Release and then with nothing.
func Mute(x *Exchange) { x.Stall() }

// Flood writes line until the client goes.
func Flood(first, line string) Handler {
	return func(x *Exchange) {
		x.Printf("%s", first)
		for {
			if _, err := io.WriteString(x.Conn, line); err != nil {
				return
			}
		}
	}
}

// Sequence gives the first request the first handler, and so on; all further ones get the last.
func Sequence(handlers ...Handler) Handler {
	var n atomic.Int64
	return func(x *Exchange) { handlers[min(int(n.Add(1)), len(handlers))-1](x) }
}

// Protected asks for credentials and leads to h only with them.
func Protected(username, password string, h Handler) Handler {
	return func(x *Exchange) {
		if u, p, _ := x.Auth(); u != username || p != password {
			Status(http.StatusUnauthorized, `WWW-Authenticate: Basic realm="fetchtest"`)(x)
			return
		}
		h(x)
	}
}

// Tunnel is what a proxy does with CONNECT, except that it always leads to addr. Register it at the empty path.
func Tunnel(addr string) Handler {
	return func(x *Exchange) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			Status(http.StatusBadGateway)(x)
			return
		}
		defer c.Close()
		x.Printf("HTTP/1.1 200 OK\r\n\r\n")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(c, x.in)
			c.Close()
		}()
		_, _ = io.Copy(x.Conn, c)
		x.Conn.Close()
		<-done
	}
}
