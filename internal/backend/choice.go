package backend

import (
	"errors"
	"fmt"
	"slices"

	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/tun"
)

// Kind names a backend.
type Kind string

// The backends. Two nodes use the first one that both have.
const (
	VXLAN  Kind = "vxlan"   // a VXLAN device of the kernel
	UDP    Kind = "udp"     // datagrams through a TUN device, in user space
	HostGW Kind = "host-gw" // a plain route through the peer's address
)

// Choice is the list of backends a node uses, and the reason for it.
type Choice struct {
	Kinds []Kind // best first
	Why   string // the reason in words, for the log
	// Auto reports whether the node may run with fewer backends than planned.
	Auto bool
	// Former are backends that the node had before, and keeps open until its peers
	// have followed; see [Settings.After].
	Former []Kind
}

// Equal reports whether two choices have the same backends, whatever the
// reasons.
func (c Choice) Equal(o Choice) bool {
	return slices.Equal(c.Kinds, o.Kinds) && slices.Equal(c.Former, o.Former)
}

// Has reports whether k is among the backends.
func (c Choice) Has(k Kind) bool { return slices.Contains(c.Kinds, k) }

// Opens reports whether the choice opens k, as one of the backends or as a former one.
func (c Choice) Opens(k Kind) bool { return c.Has(k) || slices.Contains(c.Former, k) }

// First returns the backend that stock flannel nodes assume this node uses. It
// is empty if the node carries no packets.
func (c Choice) First() Kind {
	if len(c.Kinds) == 0 {
		return ""
	}
	return c.Kinds[0]
}

// Probes find out what the running kernel can do with the privileges of this
// process. A non-nil error gives the reason why a backend cannot be used.
type Probes struct {
	VXLAN func(vni int) error
	UDP   func() error
}

// Probe holds the probes for the running kernel. They work in the network namespace of
// the calling thread and leave nothing behind.
var Probe = Probes{VXLAN: probeVXLAN, UDP: tun.Probe}

// probeVXLAN does not create a device if an earlier run left one, so that a restart
// changes nothing.
func probeVXLAN(vni int) error {
	for _, ipv6 := range []bool{false, true} {
		if mac, err := vxlan.Existing(vni, ipv6); err == nil && mac != nil {
			return nil
		}
	}
	return vxlan.Probe()
}

// Failed holds, for each backend that cannot be used on this host, the reason.
// Backends that are not listed are usable as far as is known.
type Failed map[Kind]error

// Probe finds out which of the backends that s allows cannot be used in the
// network namespace of the calling thread.
func (s Settings) Probe(p Probes) Failed {
	if s.Type != TypeAuto && s.Type != typeVXLAN {
		return nil // there is no choice to make
	}
	f := make(Failed)
	if err := p.VXLAN(s.VXLAN.VNI); err != nil {
		f[VXLAN] = err
	}
	if err := p.UDP(); err != nil {
		f[UDP] = err
	}
	return f
}

// Choose picks the backends that s asks for from those that have not failed.
func (s Settings) Choose(f Failed) (Choice, error) {
	named := "set in the network config"
	if s.Overridden {
		named = "set by --backend"
	}
	switch s.Type {
	case typeUDP:
		return Choice{Kinds: []Kind{UDP}, Why: named}, nil
	case typeHostGW:
		return Choice{Kinds: []Kind{HostGW}, Why: named}, nil
	}
	noVXLAN, noUDP := f[VXLAN], f[UDP]
	switch {
	case noVXLAN == nil && noUDP == nil:
		return Choice{Kinds: []Kind{VXLAN, UDP}, Why: "the kernel supports VXLAN; udp for peers without it", Auto: s.auto()}, nil
	case noVXLAN == nil:
		return Choice{Kinds: []Kind{VXLAN}, Why: fmt.Sprintf("the kernel supports VXLAN; no udp for peers without it: %v", noUDP), Auto: s.auto()}, nil
	case !s.auto():
		return Choice{}, fmt.Errorf("vxlan: %w; or start twilld with --backend=auto, which uses udp on this node and changes no other node", noVXLAN)
	case noUDP == nil:
		return Choice{Kinds: []Kind{UDP}, Why: fmt.Sprintf("no VXLAN: %v", noVXLAN), Auto: true}, nil
	}
	return Choice{}, fmt.Errorf("no backend is available on this host: %w", errors.Join(
		fmt.Errorf("vxlan: %w", noVXLAN), fmt.Errorf("udp: %w", noUDP)))
}

func (s Settings) auto() bool { return s.Type == TypeAuto }

// After returns s and c, extended by the former backends that a node with the earlier
// settings and choice keeps open when it changes to s and c. The nodes of a network do
// not change at the same moment: until a peer knows of the change, it sends to this
// node's former backend, and receives through its own former one.
//
// A former backend keeps its options. It is not kept if one of the chosen backends
// needs its device or its port.
func (s Settings) After(c Choice, earlier Settings, had Choice) (Settings, Choice) {
	if c.First() == had.First() || !s.Carries() {
		return s, c
	}
	onePort := func(vxlan, udp Settings) bool { return vxlan.VXLAN.UDPPort() == int(udp.UDP.Port) }
	if had.Opens(VXLAN) && !c.Has(VXLAN) && !(c.Has(UDP) && onePort(earlier, s)) {
		s.VXLAN, c.Former = earlier.VXLAN, append(c.Former, VXLAN)
	}
	if had.Opens(HostGW) && !c.Has(HostGW) {
		c.Former = append(c.Former, HostGW) // nothing is open for it
	}
	switch {
	case !had.Opens(UDP) || c.First() == UDP || c.Has(VXLAN) && onePort(s, earlier):
	case !c.Has(UDP):
		s.UDP, c.Former = earlier.UDP, append(c.Former, UDP)
	case s.UDP.Port == earlier.UDP.Port:
		c.Former = append(c.Former, UDP)
	}
	return s, c
}
