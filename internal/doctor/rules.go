package doctor

import (
	"context"
	"log/slog"
	"time"

	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/status"
)

// rules compares the firewall rules with those that twilld would install.
func (x *examination) rules(ctx context.Context) []Finding {
	if x.EnvErr != nil {
		return []Finding{warnf(startDaemon, "cannot determine the wanted rules: %v", x.EnvErr)}
	}
	w := x.wanted()
	if x.Env.Subnet.IsValid() {
		w.IPv4 = rules.Pods{Network: x.Env.Network, Subnet: x.Env.Subnet}
	}
	if x.Env.IPv6Subnet.IsValid() {
		w.IPv6 = rules.Pods{Network: x.Env.IPv6Network, Subnet: x.Env.IPv6Subnet}
	}
	r, err := rules.New(rules.Config{Wanted: w, Resync: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return []Finding{badf("systemctl restart twilld", "the subnet file is inconsistent: %v", err)}
	}
	different, err := r.Differences(ctx)
	var found []Finding
	for _, d := range different {
		remedy := startDaemon
		if x.Daemon != nil {
			remedy = "systemctl restart twilld" // which did not restore them
		}
		found = append(found, badf(remedy, "%s", d))
	}
	if kept := x.kept(); kept != nil && kept.Problem != "" && err == nil {
		found = append(found, badf("journalctl -u twilld", "twilld cannot maintain them: %s", kept.Problem))
	}
	if kept := x.kept(); kept != nil {
		for _, m := range kept.Missing {
			found = append(found, warnf("load the modules xt_rpfilter, xt_owner or nft_fib and restart twilld; journalctl -u twilld has the cause",
				"the kernel or the tool lacks a match: %s", m))
		}
		for _, name := range kept.Unwritable {
			found = append(found, warnf("ip link set dev NAME name NEW, and restart twilld; or, for '+' at the end, set EnableNFTables in the network config",
				"rules cannot contain the interface name %q, so pods that may forge addresses (CAP_NET_RAW) can send to tunnels in the name of other nodes", name))
		}
	}
	if err != nil {
		found = append(found, badf("", "%v", err))
	}
	switch {
	case len(found) > 0:
	case !w.Masquerade && !w.Forward:
		found = append(found, okf("no rules are wanted"))
	default:
		found = append(found, okf("all rules are present"))
	}
	return found
}

// kept returns the rules of the running daemon; nil if none runs, or it has none
// yet.
func (x *examination) kept() *status.Rules {
	if x.Daemon == nil {
		return nil
	}
	return x.Daemon.Rules
}

// wanted returns the rules that should exist, without the addresses.
func (x *examination) wanted() rules.Wanted {
	if k := x.kept(); k != nil {
		return rules.Wanted{NFTables: k.NFTables, Masquerade: k.Masquerade, RandomFully: k.RandomFully, Forward: k.Forward}
	}
	return rules.Wanted{
		NFTables:   x.Config != nil && x.Config.EnableNFTables,
		Masquerade: x.Env.IPMasq, RandomFully: x.RandomFully, Forward: x.Forward,
	}
}
