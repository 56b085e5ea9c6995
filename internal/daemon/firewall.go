package daemon

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/host/rules"
)

// firewall keeps the rules that the session wants. They stay when it ends, so
// that pods go on talking while the daemon is down.
type firewall struct {
	resync time.Duration
	log    *slog.Logger
	state  *state // is told which rules to ask

	rules  *rules.Rules // nil: none are kept yet
	wanted rules.Wanted // by the last keep
	ended  <-chan error // of what looks after them
}

// keep makes the rules that are wanted and, the first time, has them looked
// after until ctx is done. Where none are wanted, what an earlier run or stock
// flannel has left is removed. It fails only if packets of pods that leave the
// network would have no sender to answer to: that they are forwarded may well be
// the policy without a rule.
func (f *firewall) keep(ctx context.Context, w rules.Wanted) error {
	if f.rules != nil {
		if w == f.wanted {
			return nil
		}
		err := f.rules.Set(w)
		if err == nil {
			f.wanted = w
		}
		return err
	}
	r, err := rules.New(rules.Config{Wanted: w, Resync: f.resync, Logger: f.log})
	if err != nil {
		return err
	}
	if err := r.Apply(ctx); err != nil && w.Masquerade {
		return err
	}
	f.rules, f.wanted = r, w
	f.state.attachRules(r)
	f.ended = start("keep firewall rules", func() error { return r.Run(ctx) })
	return nil
}

// wait waits until nothing looks after the rules any more. The context of keep
// is done.
func (f *firewall) wait() {
	if f.ended != nil {
		await(f.ended)
	}
}

// wantedRules returns the rules for the network and the subnets of the node.
func (s *session) wantedRules() rules.Wanted {
	return rules.Wanted{
		NFTables:    s.latest.EnableNFTables,
		Masquerade:  s.options.ipMasq,
		RandomFully: !s.options.ipMasqOrderly,
		Forward:     s.options.forwardRules,
		IPv4:        podsOf(s.node.config.IPv4.Network, s.node.own.Subnet),
		IPv6:        podsOf(s.node.config.IPv6.Network, s.node.own.IPv6Subnet),
	}
}

// podsOf returns no addresses where the node has no subnet of the family.
func podsOf(network, subnet netip.Prefix) rules.Pods {
	if !network.IsValid() || !subnet.IsValid() {
		return rules.Pods{}
	}
	return rules.Pods{Network: network, Subnet: subnet}
}
