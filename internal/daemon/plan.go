package daemon

import (
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// inputs is all that a plan follows from: what the operator, the store and the
// kernel say. Whatever happens while the daemon runs changes one of these and
// nothing else.
type inputs struct {
	options *options
	// config is the network configuration in force, latest the store's. They
	// differ while this node cannot follow the latest: see adopt.
	config, latest *lease.Config
	failed         failures
	link           underlay.Interface
	self           backend.Self // VXLAN devices that are there, and which host this is
	own            lease.Lease  // this node's lease, as the store gave it last
	leases         *lease.Set   // of all nodes, as the store's updates add up
	peers          peers
	// writable says that the store takes what the node announces, and gives it
	// another lease for one that is lost. A file is written by an operator, who
	// may want to restart twilld.
	writable bool
}

// failures is which backends cannot be used on this host.
type failures struct {
	backend.Failed
	settings backend.Settings // that were probed for
	// opening says that one was found when the data plane was opened: with
	// another interface, or another MTU, it may work.
	opening bool
}

// peers is a set of leases that is passed to the data plane, the own one included.
type peers struct {
	version uint // of two sets with the same version both are the same
	leases  []lease.Lease
}

// want is how a node is to be, by its inputs.
type want struct {
	node  node
	attrs lease.Attrs // announced in the lease
	peers peers
	rules rules.Wanted
	env   lease.SubnetEnv // but for the MTU, which the open data plane knows
}

// plan says how the node is to be. It looks at nothing but the inputs. An error
// means that there is nothing to announce.
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
		if w.attrs, err = settings.Announce(choice, in.config, in.link, self, o.switches.PartialChecksums); err != nil {
			return want{}, err
		}
	}
	// The peers know the node by what it announces or, from a file, by what the
	// file says; that may be of the same change as the rest.
	if in.writable {
		own.Attrs = w.attrs
	} else if listed, ok := in.leases.Get(own.Key()); ok {
		own.Attrs = listed.Attrs
	}
	w.node = node{config: in.config, settings: settings, choice: choice, link: in.link, own: own}
	return w, nil
}

// podsOf returns no addresses where the node has no subnet of the family.
func podsOf(network, subnet netip.Prefix) rules.Pods {
	if !network.IsValid() || !subnet.IsValid() {
		return rules.Pods{}
	}
	return rules.Pods{Network: network, Subnet: subnet}
}

// backends returns what the configuration in force asks of the data plane, and
// which backends the node has for it.
func (in *inputs) backends() (backend.Settings, backend.Choice, error) {
	s, err := in.settings(in.config)
	if err != nil || !s.Carries() {
		return s, backend.Choice{}, err
	}
	c, err := s.Choose(in.failed.Failed)
	if err != nil {
		return s, c, &settingsError{err}
	}
	return s, c, nil
}

// settings returns what c asks of this node.
func (in *inputs) settings(c *lease.Config) (backend.Settings, error) {
	s, err := backend.SettingsOf(c, string(in.options.backend))
	if err != nil {
		return s, &settingsError{err}
	}
	return s, nil
}

// settingsError is a network configuration that is valid, but not for this node.
type settingsError struct{ error }
