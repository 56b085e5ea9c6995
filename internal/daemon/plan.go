package daemon

import (
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// inputs is everything that determines a plan: the input of the operator, the
// store and the kernel. Every event while the daemon runs changes one of these
// and nothing else.
type inputs struct {
	options *options
	// config is the network configuration in force, latest the store's. They
	// differ while this node cannot follow the latest: see adopt.
	config, latest *lease.Config
	failed         failures
	former         former
	link           underlay.Interface
	outside        []string       // interfaces on which packets of other hosts may arrive, see underlay.Outside
	self           dataplane.Self // addresses of existing VXLAN devices, and the ID of this host
	own            lease.Lease    // this node's lease, as last returned by the store
	leases         *lease.Set     // of all nodes, the sum of the store's updates
	peers          peers
	// kernelPath means that the kernel path is wanted and passed its self-test.
	kernelPath bool
	// writable means that the store accepts the node's announcements and can
	// replace a lost lease. A lease file is not writable: an operator writes it, and
	// may have to restart twilld.
	writable bool
}

// failures are the backends that cannot be used on this host.
type failures struct {
	backend.Failed
	settings backend.Settings // for which the backends were probed
	// opening means that a failure occurred when the data plane was opened: with
	// another interface or MTU the backend may work.
	opening bool
}

// former holds the backends that the node had before the network configuration named
// another one. It is empty once the peers have had time to follow.
type former struct {
	settings backend.Settings
	choice   backend.Choice
}

// peers is a set of leases to be passed to the data plane, including this node's
// own.
type peers struct {
	version uint // sets with the same version are equal
	leases  []lease.Lease
}

// want is the desired state of a node, derived from its inputs.
type want struct {
	node  node
	attrs lease.Attrs // announced in the lease
	peers peers
	rules rules.Wanted
	env   lease.SubnetEnv // except the MTU, which is known once the data plane is open
}

// plan derives the desired state from the inputs alone. An error means that
// there is nothing to announce.
func plan(in *inputs) (want, error) {
	settings, choice, err := in.backends()
	if err != nil {
		return want{}, err
	}
	o, own := in.options, in.own
	w := want{
		peers: in.peers,
		rules: rules.Wanted{
			NFTables:    in.latest.EnableNFTables,
			Masquerade:  o.ipMasq,
			RandomFully: !o.ipMasqOrderly,
			Forward:     o.forwardRules,
			IPv4:        podsOf(in.config.IPv4.Network, own.Subnet),
			IPv6:        podsOf(in.config.IPv6.Network, own.IPv6Subnet),
			Guard:       guard(settings, choice, in),
		},
		env: lease.SubnetEnv{
			Network:     in.config.IPv4.Network,
			Subnet:      own.Subnet,
			IPv6Network: in.config.IPv6.Network,
			IPv6Subnet:  own.IPv6Subnet,
			IPMasq:      o.ipMasq,
		},
	}
	w.attrs = lease.Attrs{PublicIP: in.link.PublicIP, PublicIPv6: in.link.PublicIPv6}
	if settings.Carries() {
		self := in.self
		self.Leases, self.Own = in.peers.leases, own
		if w.attrs, err = dataplane.Announce(settings, choice, in.config, in.link, self, udp.Announce(o.switches.PartialChecksums, in.kernelPath)); err != nil {
			return want{}, err
		}
	}
	// The peers know the node by its announcement or, with a lease file, by the
	// content of the file, which may have changed together with the rest.
	if in.writable {
		own.Attrs = w.attrs
	} else if listed, ok := in.leases.Get(own.Key()); ok {
		own.Attrs = listed.Attrs
	}
	w.node = node{config: in.config, settings: settings, choice: choice, link: in.link, own: own}
	return w, nil
}

// podsOf returns the addresses of one family, which are empty if the node has no subnet in
// it.
func podsOf(network, subnet netip.Prefix) rules.Pods {
	if !network.IsValid() || !subnet.IsValid() {
		return rules.Pods{}
	}
	return rules.Pods{Network: network, Subnet: subnet}
}

// guard returns the tunnels that packets of pods must not reach: those of the nodes
// that have leases, for the backends that this node has.
func guard(s backend.Settings, c backend.Choice, in *inputs) (g rules.Guard) {
	if c.Opens(backend.UDP) {
		g.UDPPort = s.UDP.Port
	}
	if c.Opens(backend.VXLAN) {
		g.VXLANPort = uint16(s.VXLAN.UDPPort())
	}
	var peers []netip.Addr
	leases := in.peers.leases
	for i := range leases {
		if leases[i].Key() == in.own.Key() {
			continue
		}
		peers = append(peers, leases[i].Addrs()...)
	}
	g.Peers, g.Underlay = rules.Blocks(peers), in.outside
	return g
}

// backends returns the data plane settings of the configuration in force, and
// the backends that the node has for them, including former ones that stay open.
func (in *inputs) backends() (backend.Settings, backend.Choice, error) {
	s, err := in.settings(in.config)
	if err != nil || !s.Carries() {
		return s, backend.Choice{}, err
	}
	c, err := s.Choose(in.failed.Failed)
	if err != nil {
		return s, c, &settingsError{err}
	}
	s, c = s.After(c, in.former.settings, in.former.choice)
	return s, c, nil
}

// settings returns the settings of c for this node.
func (in *inputs) settings(c *lease.Config) (backend.Settings, error) {
	s, err := backend.SettingsOf(c, string(in.options.backend))
	if err != nil {
		return s, &settingsError{err}
	}
	return s, nil
}

// settingsError reports that a valid network configuration does not fit this node.
type settingsError struct{ error }
