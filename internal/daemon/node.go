package daemon

import (
	"log/slog"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// node is what a data plane is opened with.
type node struct {
	config   *lease.Config
	settings backend.Settings
	choice   backend.Choice
	own      lease.Lease
	told     lease.Attrs // what the others have been told, or are about to be
	link     underlay.Interface
	options  *options
	log      *slog.Logger
}

// attrs is what this node tells the others about itself.
func (n *node) attrs() (lease.Attrs, error) {
	if !n.settings.Carries() {
		return lease.Attrs{PublicIP: n.link.PublicIP, PublicIPv6: n.link.PublicIPv6}, nil
	}
	return n.settings.Announce(n.choice, n.config, n.link, n.options.switches.PartialChecksums)
}

// opensLike says whether a data plane that was opened with o is that of n.
func (n *node) opensLike(o *node) bool {
	return n.link.Equal(o.link) && n.own.Key() == o.own.Key() && n.settings == o.settings && n.choice.Equal(o.choice)
}

// tell puts what is known of the node into doc.
func (n *node) tell(doc *status.Document) {
	doc.Network = n.config.Networks()
	doc.Backend = n.settings.Type
	doc.Ways = nil
	for _, w := range n.choice.Ways {
		doc.Ways = append(doc.Ways, string(w))
	}
	doc.BackendWhy = n.choice.Why
	doc.Lease = &status.Lease{
		Subnet:     n.own.Subnet,
		IPv6Subnet: n.own.IPv6Subnet,
		PublicIP:   n.own.PublicIP,
		PublicIPv6: n.own.PublicIPv6,
		Expiration: n.own.Expiration,
	}
	doc.Underlay = &status.Underlay{
		Name: n.link.Name,
		IPv4: n.link.IPv4,
		IPv6: n.link.IPv6,
		MTU:  n.link.MTU,
		Why:  n.link.Why,
	}
}
