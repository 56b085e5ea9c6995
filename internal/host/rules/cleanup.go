package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// Cleanup removes all rules, chains and tables that twilld or stock flannel ever
// made on this host, by their names and comments, whichever tool made them, and
// nothing else. A tool that is not installed is not asked. It goes on where
// something fails, and returns all errors.
func Cleanup(ctx context.Context, log *slog.Logger) error {
	return cleanup(ctx, thisHost, log)
}

func cleanup(ctx context.Context, h host, log *slog.Logger) error {
	r := &Rules{host: h, log: log}
	asked := 0
	var errs []error
	for _, f := range families {
		for _, t := range h.tools(f) {
			asked++
			if _, err := r.reconcile(ctx, t, nothing()); err != nil && !kernelLacks(err) {
				errs = append(errs, fmt.Errorf("clean up %s rules: %w", f.name, h.explain(f, err)))
			}
		}
	}
	if asked == 0 {
		log.Warn("no firewall rules looked for: neither iptables nor nft is there")
	}
	return errors.Join(errs...)
}
