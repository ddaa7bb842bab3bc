package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"slotfetch/slots"
)

// testPolicy is what the configuration asks of a slot that is to be activated.
func (d *daemon) testPolicy() slots.TestPolicy {
	return slots.TestPolicy{AllowDowngrade: d.cfg.Upgrade.AllowDowngrade, Space: func() (int64, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(d.cfg.StateDir, &st); err != nil {
			return 0, fmt.Errorf("cannot ask for free space in the state directory: %w", err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}}
}
