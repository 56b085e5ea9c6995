package rules

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Guard describes which packets must not leave this node for the tunnel ports of other
// nodes. Peers treat what arrives there from this node's address as sent by this node,
// which includes masqueraded packets of pods: a pod could send in the name of any pod of
// this node, and over VXLAN in the name of any pod at all.
type Guard struct {
	UDPPort   uint16 // of the udp backend; 0: not used
	VXLANPort uint16 // of the vxlan backend; 0: not used
	// Peers are the addresses of the other nodes, see Blocks.
	Peers []netip.Prefix
	// Underlay names the interfaces on which packets of other nodes may arrive, whichever
	// interface leads back to their source. If it is empty, or the tool cannot write one of
	// the names (Status.Unwritable), forged sources are not detected.
	Underlay []string
}

// equal reports whether g and o are the same.
func (g Guard) equal(o Guard) bool {
	return g.UDPPort == o.UDPPort && g.VXLANPort == o.VXLANPort && slices.Equal(g.Peers, o.Peers) &&
		slices.Equal(g.Underlay, o.Underlay)
}

// ports returns the ports in use.
func (g Guard) ports() (all []uint16) {
	for _, p := range []uint16{g.UDPPort, g.VXLANPort} {
		if p != 0 {
			all = append(all, p)
		}
	}
	return all
}

// blocksAtMost is the largest number of prefixes for peers in a chain. Each costs a
// comparison for each UDP packet that a pod sends out of the pod network.
const blocksAtMost = 64

// Blocks returns at most blocksAtMost prefixes that together contain all of addrs: one
// for each address if that is possible, and otherwise the longest prefixes of equal
// length that suffice.
func Blocks(addrs []netip.Addr) []netip.Prefix {
	slices.SortFunc(addrs, netip.Addr.Compare)
	blocks := make([]netip.Prefix, 0, blocksAtMost)
	for lost := 0; ; lost++ {
		blocks = blocks[:0]
		fit := true
		for _, a := range addrs {
			b := netip.PrefixFrom(a, max(1, a.BitLen()-lost)).Masked()
			if n := len(blocks); n > 0 && blocks[n-1] == b {
				continue
			}
			if fit = len(blocks) < blocksAtMost; !fit {
				break
			}
			blocks = append(blocks, b)
		}
		if fit {
			return blocks
		}
	}
}

// unwritable returns the interfaces of the underlay that rules of the chosen tool cannot
// name. The kernel admits any bytes but "/", ":" and space in names (dev_valid_name). The
// tools take all printable ones literally, except
//   - quotes and backslashes: nft has no escape for them, and iptables -S lists them as they
//     are;
//   - "+" at the end, which makes a pattern for iptables (iptables(8), --in-interface). nft
//     has one too, "*", but an escape for it, see quoteName.
func (w Wanted) unwritable() (names []string) {
	if len(w.Guard.ports()) == 0 || w.IPv4 == (Pods{}) && w.IPv6 == (Pods{}) {
		return nil // no rule names them
	}
	for _, name := range w.Guard.Underlay {
		refused := func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == '\\' }
		if !utf8.ValidString(name) || strings.ContainsFunc(name, refused) || !w.NFTables && strings.HasSuffix(name, "+") {
			names = append(names, name)
		}
	}
	return names
}

// spoofed returns the rules against datagrams to a tunnel that come from a pod although
// their source is the address of another node or of this one. They arrive on an interface
// that does not lead to their source and on which other nodes do not send. The kernel
// drops them too where rp_filter is 1, but there is no rp_filter for IPv6. spoofed returns
// no rules if the interfaces are not known.
func (g Guard) spoofed(others operand) []rule {
	var all []rule
	for _, name := range g.Underlay {
		all = append(all, rule{src: others, iif: name, do: goBack})
	}
	if all == nil {
		return nil
	}
	for _, port := range g.ports() {
		all = append(all, rule{src: others, port: port, spoofed: true, do: drop})
	}
	return all
}

var linkLocal = netip.MustParsePrefix("fe80::/10")

// guard adds the rules of a family to t. Each of them names the network, which
// distinguishes them from those of another daemon on this host.
func (t *target) guard(f *family, g Guard, network netip.Prefix) {
	pods, others := in(network), notIn(network)
	forward := []rule{
		{dst: in(network), do: goBack},
		{src: pods, notUDP: true, do: goBack},
	}
	output := []rule{{src: others, port: g.UDPPort, owner: &uids{0, 0}, do: goBack}}
	if me := uint32(os.Geteuid()); me != 0 {
		output = append(output, rule{src: others, port: g.UDPPort, owner: &uids{me, me}, do: goBack})
	}
	found := false
	for _, p := range g.Peers {
		if !f.holds(p) {
			continue
		}
		found = true
		for _, port := range g.ports() {
			forward = append(forward, rule{src: pods, dst: in(p), port: port, do: drop})
		}
		output = append(output, rule{src: others, dst: in(p), port: g.UDPPort, owner: &anyUser, do: drop})
	}
	if found && len(g.ports()) > 0 {
		t.rules[&guardForward] = forward
	}
	// Packets that the kernel sends through a VXLAN device may belong to the socket of the
	// process that sent the inner packet, so users cannot be distinguished for VXLAN.
	if found && g.UDPPort != 0 {
		t.rules[&guardOutput] = output
	}
	if found || g.VXLANPort != 0 {
		t.rules[&guardSpoofed] = g.spoofed(others)
	}
	// The udp backend checks the source itself; a VXLAN device does not.
	if g.VXLANPort != 0 {
		t.rules[&guardInput] = []rule{{src: pods, port: g.VXLANPort, do: drop}}
		if f == &ipv6 { // pods have link-local addresses too, nodes send from others
			t.rules[&guardInput] = append(t.rules[&guardInput], rule{src: in(linkLocal), dst: others, port: g.VXLANPort, do: drop})
		}
	}
}
