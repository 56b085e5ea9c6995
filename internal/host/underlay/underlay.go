// Package underlay finds the interface and the addresses at which the other
// nodes reach this one.
//
// The ways to specify the interface are flannel's, and are tried in its order:
// by address or name, by regular expression, by a destination reached through
// it, and otherwise by the public address or the default route. Unlike in
// flannel, a regular expression prefers a name or an address that it matches as
// a whole, and a link of this or another container network is never chosen
// unless it is named explicitly: "eth1|bond1" must not match "veth1a2b3c4d" of
// a pod, nor "eth1" match "eth10", nor ".*" match "lo".
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Options specifies how to choose, by the values of the flags of the same name.
// All may be empty or invalid.
type Options struct {
	Iface      []string   // addresses or names; the first suitable one is taken
	IfaceRegex []string   // tried if no Iface is suitable
	CanReach   netip.Addr // tried if no IfaceRegex is suitable

	// PublicIP and PublicIPv6 are announced instead of the addresses of the
	// interface. If none of the options above is set, they also select the interface,
	// and must be addresses of this host.
	PublicIP, PublicIPv6 netip.Addr

	// Own names this daemon's device, which exists if the choice is repeated
	// while the daemon runs. It is never chosen. It may be empty.
	Own string

	// NeedIPv4 and NeedIPv6 are the address families that the interface must
	// have.
	NeedIPv4, NeedIPv6 bool
}

// Interface is the chosen interface, in the state in which it was chosen.
type Interface struct {
	Name  string
	Index int
	MTU   int // bytes
	// IPv4 and IPv6 are addresses of the interface, invalid if not needed.
	IPv4, IPv6 netip.Addr
	// PublicIP and PublicIPv6 are the addresses announced to the other nodes:
	// IPv4 and IPv6 unless the options override them.
	PublicIP, PublicIPv6 netip.Addr
	Why                  string // the reason for the choice, for the log
}

// String returns "eth0 (192.0.2.1, MTU 1500)".
func (i Interface) String() string {
	s := i.Name + " ("
	for _, a := range i.addrs() {
		s += a.String() + ", "
	}
	return fmt.Sprintf("%sMTU %d)", s, i.MTU)
}

// addrs returns the valid addresses of i, IPv4 first.
func (i Interface) addrs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{i.IPv4, i.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// Equal reports whether i and o are equal apart from the reason for the choice.
func (i Interface) Equal(o Interface) bool {
	i.Why = o.Why
	return i == o
}

// Choose chooses in the network namespace of the calling thread; if the caller
// changed it, its goroutine must be locked to the thread. The error is a
// *NoneError unless o is invalid or the state of the host cannot be read.
func Choose(o Options) (Interface, error) {
	c, err := newChooser(o)
	if err != nil {
		return Interface{}, err
	}
	regexes, err := compile(o.IfaceRegex)
	if err != nil {
		return Interface{}, err
	}
	if c.host, err = readHost(); err != nil {
		return Interface{}, fmt.Errorf("choose interface: %w", err)
	}

	var tried []error
	for _, way := range c.ways(o.Iface, regexes, o.CanReach) {
		i, err := way()
		if err == nil {
			return i, nil
		}
		tried = append(tried, err)
	}
	return Interface{}, &NoneError{joined(tried), c.host.String()}
}

// NoneError reports that no interface is suitable.
type NoneError struct {
	Tried error  // why each way that was tried failed
	Has   string // the interfaces of the host
}

func (e *NoneError) Error() string {
	return fmt.Sprintf("choose interface: %v; this host has %s; correct this, or select another interface with --iface", e.Tried, e.Has)
}

func (e *NoneError) Unwrap() error { return e.Tried }

func newChooser(o Options) (chooser, error) {
	if !o.NeedIPv4 && !o.NeedIPv6 {
		return chooser{}, errors.New("choose interface: neither IPv4 nor IPv6 is needed")
	}
	return chooser{own: o.Own, needIPv4: o.NeedIPv4, needIPv6: o.NeedIPv6, publicIP: o.PublicIP, publicIPv6: o.PublicIPv6}, nil
}

// ways returns the ways to choose, in the order in which they are tried.
func (c *chooser) ways(iface []string, regexes []pattern, canReach netip.Addr) []func() (Interface, error) {
	var ways []func() (Interface, error)
	for _, s := range iface {
		if s == "" { // by the default route, as in flannel
			ways = append(ways, c.byDefaultRoute)
			continue
		}
		ways = append(ways, func() (Interface, error) { return c.byNameOrAddr(s) })
	}
	for _, p := range regexes {
		if p.text == "" {
			ways = append(ways, c.byDefaultRoute)
			continue
		}
		ways = append(ways, func() (Interface, error) { return c.byPattern(p) })
	}
	if canReach.IsValid() {
		ways = append(ways, func() (Interface, error) { return c.byDestination(canReach) })
	}
	switch {
	case ways != nil:
		return ways
	case c.publicIP.IsValid():
		return append(ways, func() (Interface, error) { return c.byAddr("--public-ip="+c.publicIP.String(), c.publicIP) })
	case c.publicIPv6.IsValid():
		return append(ways, func() (Interface, error) { return c.byAddr("--public-ipv6="+c.publicIPv6.String(), c.publicIPv6) })
	}
	return append(ways, c.byDefaultRoute)
}

// pattern is a regular expression for names and addresses.
type pattern struct {
	text  string
	whole *regexp.Regexp // matches a whole string
	part  *regexp.Regexp // matches any part of a string
}

func compile(texts []string) ([]pattern, error) {
	var ps []pattern
	for _, t := range texts {
		part, err := regexp.Compile(t)
		if err != nil {
			return nil, fmt.Errorf("--iface-regex=%s: %w", t, err)
		}
		ps = append(ps, pattern{t, regexp.MustCompile(`^(?:` + t + `)$`), part})
	}
	return ps, nil
}

// joined is errors.Join with the result on one line.
func joined(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}
