package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// link is a network namespace behind a link of 1 Gbit/s, shaped by the kernel on the far side.
type link struct{ space string }

// The addresses are from the network that RFC 2544 sets aside for benchmarks.
const near, beyond = "198.18.255.1", "198.18.255.2"

func newLink() (*link, error) {
	id := fmt.Sprintf("sfb%d", os.Getpid())
	l := &link{space: id}
	for _, line := range []string{
		"ip netns add " + id,
		"ip link add " + id + " type veth peer name far netns " + id,
		"ip address add " + near + "/30 dev " + id,
		"ip link set " + id + " up",
		"ip -n " + id + " address add " + beyond + "/30 dev far",
		"ip -n " + id + " link set far up",
		"ip netns exec " + id + " tc qdisc add dev far root tbf rate 1gbit burst 256kb latency 20ms",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out))), l.remove())
		}
	}
	return l, nil
}

// command is a program at the far end.
func (l *link) command(program string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", l.space, program}, args...)...)
}

// remove takes the link away with its namespace, in which nothing may run any more.
func (l *link) remove() error {
	// The pair goes with the namespace, but not at once, and perhaps there is none.
	_ = exec.Command("ip", "link", "delete", l.space).Run()
	if out, err := exec.Command("ip", "netns", "delete", l.space).CombinedOutput(); err != nil {
		return fmt.Errorf("cannot remove the namespace %s: %w: %s", l.space, err, out)
	}
	return nil
}
