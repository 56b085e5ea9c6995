package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/rules"
)

// rules compares flannel's firewall rules with those that twilld keeps.
func (x *examination) rules(ctx context.Context) []Finding {
	if x.EnvErr != nil {
		return []Finding{warnf(startDaemon, "not known which there should be: %v", x.EnvErr)}
	}
	w := rules.Wanted{Masquerade: x.Env.IPMasq, Forward: x.Forward, RandomFully: x.RandomFully}
	if x.Config != nil {
		w.NFTables = x.Config.EnableNFTables
	}
	if x.Env.Subnet.IsValid() {
		w.IPv4 = rules.Pods{Network: x.Env.Network, Subnet: x.Env.Subnet}
	}
	if x.Env.IPv6Subnet.IsValid() {
		w.IPv6 = rules.Pods{Network: x.Env.IPv6Network, Subnet: x.Env.IPv6Subnet}
	}
	r, err := rules.New(rules.Config{Wanted: w, Resync: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return []Finding{badf("systemctl restart twilld", "the subnet file makes no sense: %v", err)}
	}
	different, err := r.Differences(ctx)
	var found []Finding
	for _, d := range different {
		remedy := startDaemon
		if x.Daemon != nil {
			remedy = "systemctl restart twilld" // or else its flags are others than ours
		}
		found = append(found, badf(remedy, "%s", d))
	}
	if err != nil {
		found = append(found, badf("", "%v", err))
	}
	if len(found) == 0 {
		found = append(found, okf("as twilld wants them"))
	}
	return found
}

// Addresses of a packet from a pod elsewhere to one of this node. The first
// address after that of the subnet is the bridge's.
func podOf(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next().Next() }

// forwardPolicy looks whether FORWARD lets packets of pods through, both ways.
func (x *examination) forwardPolicy(ctx context.Context) []Finding {
	if !x.Env.Subnet.IsValid() {
		return []Finding{okf("this node has no IPv4 pods")}
	}
	t, err := readChains(ctx, "iptables", "filter")
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	own := podOf(x.Env.Subnet)
	other := elsewhere(x.Env.Network, x.Env.Subnet)
	var found []Finding
	for _, p := range []packet{
		{in: x.device(), src: other, dst: own},
		{out: x.device(), src: own, dst: other},
	} {
		f := t.passes("FORWARD", p)
		switch {
		case f.accept:
			continue
		case f.rule != "":
			found = append(found, badf(t.deleteRule(f.rule), "packets from %s to %s are dropped in FORWARD by %s", p.src, p.dst, f.rule))
		case x.Forward && (x.Config == nil || !x.Config.EnableNFTables):
			found = append(found, badf("systemctl restart twilld", "the policy of FORWARD is DROP, and flannel's rules that accept packets of %s are not there", x.Env.Network))
		default:
			found = append(found, badf("iptables -P FORWARD ACCEPT", "the policy of FORWARD is DROP, and no rule accepts packets of %s", x.Env.Network))
		}
		break // the other way is no news
	}
	found = append(found, dropHooks(ctx, "forward")...)
	if len(found) == 0 {
		found = append(found, okf("lets packets of %s through", x.Env.Network))
	}
	return found
}

// elsewhere returns the address of a pod of another node.
func elsewhere(network, own netip.Prefix) netip.Addr {
	a := podOf(network.Masked())
	if own.Contains(a) {
		// The next subnet of the same size.
		b := own.Masked().Addr().As4()
		for i, step := 3, uint(1)<<(32-own.Bits()); i >= 0; i-- {
			step += uint(b[i])
			b[i], step = byte(step), step>>8
		}
		a = podOf(netip.PrefixFrom(netip.AddrFrom4(b), own.Bits()))
	}
	return a
}

// defaultPort is flannel's.
const defaultPort = 8285

// udpPort looks whether INPUT lets the peers' datagrams in.
func (x *examination) udpPort(ctx context.Context) []Finding {
	p := packet{proto: "udp", dport: defaultPort}
	if dp := x.dataplane(); dp != nil && dp.Port != 0 {
		p.dport = int(dp.Port)
	}
	if x.Daemon != nil && x.Daemon.Underlay != nil {
		p.in, p.dst = x.Daemon.Underlay.Name, x.Daemon.Underlay.IPv4
	}
	t, err := readChains(ctx, "iptables", "filter")
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	open := fmt.Sprintf("iptables -I INPUT -p udp --dport %d -j ACCEPT", p.dport)
	var found []Finding
	peers := x.known()
	if len(peers) == 0 {
		peers = []knownPeer{{}} // a datagram from anybody
	}
	for _, peer := range peers {
		p.src = peer.public
		f := t.passes("INPUT", p)
		if f.accept {
			continue
		}
		by := f.rule
		if by == "" {
			by = "the policy of INPUT"
		}
		from := "peers"
		if peer.public.IsValid() {
			from = peer.public.String()
		}
		if len(f.maybe) > 0 {
			found = append(found, warnf(open, "%s drops datagrams of %s to UDP port %d, unless a rule before it accepts them: %s", by, from, p.dport, f.maybe[0]))
		} else {
			found = append(found, badf(open, "%s drops datagrams of %s to UDP port %d", by, from, p.dport))
		}
		break // mending one mends all
	}
	found = append(found, dropHooks(ctx, "input")...)
	if len(found) == 0 {
		found = append(found, okf("iptables and nftables of this node let datagrams to port %d in", p.dport))
	}
	return found
}

// nftChain is a chain in nft's JSON, libnftables-json(5).
type nftChain struct {
	Family, Table, Name, Hook, Policy string
}

// dropHooks finds chains of nftables that drop what their rules do not accept.
// Those of iptables are in them, too, and left out.
func dropHooks(ctx context.Context, hook string) []Finding {
	out, err := exec.CommandContext(ctx, "nft", "-j", "list", "chains").Output()
	if err != nil {
		return nil // no nft, no such chains that anybody could have made with it
	}
	var list struct {
		NFTables []struct{ Chain *nftChain }
	}
	if json.Unmarshal(out, &list) != nil {
		return nil
	}
	var found []Finding
	for _, e := range list.NFTables {
		c := e.Chain
		if c == nil || c.Hook != hook || c.Policy != "drop" || c.Table == "filter" && c.Name == strings.ToUpper(hook) {
			continue
		}
		if c.Family != "ip" && c.Family != "inet" && c.Family != "ip6" {
			continue
		}
		found = append(found, warnf(fmt.Sprintf("nft 'chain %s %s %s { policy accept; }'", c.Family, c.Table, c.Name),
			"the nftables chain %s %s %s drops all that its own rules do not accept, whatever other tables say", c.Family, c.Table, c.Name))
	}
	return found
}
