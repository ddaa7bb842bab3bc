package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// terminalOf returns the descriptor behind a stream when that is a terminal.
func terminalOf(stream any) (fd int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, false
	}
	fd = int(f.Fd()) // #nosec G115 -- a descriptor fits.
	return fd, term.IsTerminal(fd)
}

func isTerminal(stream any) bool {
	_, ok := terminalOf(stream)
	return ok
}

// canDraw tells whether a stream is a terminal that can move the cursor and knows its width; serial consoles
// often do not.
func canDraw(stream any) bool {
	fd, ok := terminalOf(stream)
	if !ok || os.Getenv("TERM") == "dumb" {
		return false
	}
	width, _, err := term.GetSize(fd)
	return err == nil && width > 0
}

// canAsk tells whether somebody is there to answer.
func (a *app) canAsk() bool { return !a.noInput && isTerminal(a.stdin) }

// note says something beside the data; --quiet silences it.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, cleanLines(a.sameBox(fmt.Sprintf(format, args...))))
	}
}

// sure asks before something is done that cannot be taken back; "an upgrade" is for where nobody can be asked.
func (a *app) sure(ctx context.Context, what string, question func() (string, error)) error {
	if !a.canAsk() {
		return usage(what+" needs a yes", "Say so with --yes.")
	}
	text, err := question()
	if err != nil {
		return err
	}
	yes, err := a.confirm(ctx, text)
	if err == nil && !yes {
		err = &failure{code: exitFailed, kind: "Declined", message: "nothing was changed"}
	}
	return err
}

// confirm asks a yes-or-no question; anything but a yes is a no.
func (a *app) confirm(ctx context.Context, question string) (bool, error) {
	answer, err := a.ask(ctx, question+" [y/N] ")
	if err != nil {
		return false, err
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

// ask prints a prompt and reads one line from stdin.
func (a *app) ask(ctx context.Context, prompt string) (string, error) {
	fmt.Fprint(a.stderr, prompt)
	line, err := await(ctx, func() (string, error) { return readLine(a.stdin) })
	if err != nil {
		fmt.Fprintln(a.stderr)
	}
	return line, err
}

// askSecret is ask without echo. When it is interrupted it gives the terminal back as it was.
func (a *app) askSecret(ctx context.Context, prompt string) (string, error) {
	fd, ok := terminalOf(a.stdin)
	if !ok {
		return "", errors.New("cannot ask for a password: stdin is no terminal")
	}
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("cannot ask for a password: %w", err)
	}
	fmt.Fprint(a.stderr, prompt)
	secret, err := await(ctx, func() (string, error) {
		b, err := term.ReadPassword(fd)
		return string(b), err
	})
	if err != nil {
		_ = term.Restore(fd, before)
	}
	fmt.Fprintln(a.stderr)
	return secret, err
}

// await runs a read from a terminal, which no context can stop. After an interruption the read stays behind until
// the process ends, which is at once.
func await(ctx context.Context, read func() (string, error)) (string, error) {
	type result struct {
		text string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := read()
		done <- result{text, err}
	}()
	select {
	case r := <-done:
		return r.text, r.err
	case <-ctx.Done():
		return "", ended(ctx)
	}
}

// readLine reads up to the line end and not a byte further: the next question needs what follows.
func readLine(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, one[:n]...)
		if errors.Is(err, io.EOF) && len(line) > 0 {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		if err != nil {
			return "", err
		}
		if len(line) > 64<<10 {
			return "", errors.New("the line on stdin is too long")
		}
	}
}
