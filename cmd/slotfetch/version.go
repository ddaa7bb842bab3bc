package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// build is what version -o json prints.
type build struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version of slotfetch",
		Long:    "Show the version of this program. It asks no box.",
		Example: "  slotfetch version -o json",
		Args:    wants(0, 0),
		RunE: a.act(func(context.Context, []string) error {
			b := build{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						b.Revision = s.Value
					}
				}
			}
			return a.show(view{doc: b, ids: []string{b.Version}, text: func(p *page) {
				p.line("slotfetch %s (%s, %s)", b.Version, b.Go, b.Platform)
			}})
		}),
	}
}
