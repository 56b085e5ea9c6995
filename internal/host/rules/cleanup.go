package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Cleanup removes all rules, chains and tables of twilld and stock flannel from this
// host, by their names and comments, whichever tool made them, and nothing else. Tools
// that are not installed are skipped. It continues after failures and returns all
// errors.
func Cleanup(ctx context.Context, log *slog.Logger) error {
	return cleanup(ctx, thisHost, log)
}

func cleanup(ctx context.Context, h host, log *slog.Logger) error {
	r := &Rules{host: h, log: log}
	asked := 0
	var errs []error
	for _, f := range families {
		for _, t := range h.tools(ctx, f) {
			asked++
			if _, err := r.reconcile(ctx, t, nothing()); err != nil && !kernelLacks(err) {
				errs = append(errs, fmt.Errorf("clean up %s rules: %w", f.name, h.explain(f, err)))
			}
		}
	}
	if asked == 0 {
		log.Warn("cannot look for firewall rules: neither iptables nor nft is installed")
	}
	return errors.Join(errs...)
}
