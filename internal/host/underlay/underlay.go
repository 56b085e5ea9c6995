// Package underlay finds the interface and the addresses at which the other
// nodes reach this one.
//
// The ways to say which interface are flannel's, and are tried in its order:
// by address or name, by regular expression, by a destination that it leads
// to, and without any of these by the public address or the default route.
// Unlike flannel's, a regular expression prefers a name or an address that it
// matches as a whole, and a link that this or another container network made
// never wins unless it is named: "eth1|bond1" must not take "veth1a2b3c4d" of a
// pod, nor "eth1" take "eth10", nor ".*" take "lo".
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
)

// Options says how to choose. The strings are the values of the flags of the
// same name; all may be empty.
type Options struct {
	Iface      []string // addresses or names, the first that will do is taken
	IfaceRegex []string // tried when no Iface will do
	CanReach   string   // an address; tried when no IfaceRegex will do

	// PublicIP and PublicIPv6 are announced instead of the addresses of the
	// interface. Where nothing above is given they also choose it, and have
	// to be addresses of this host.
	PublicIP, PublicIPv6 string

	// Own names this daemon's device, which is there when the choice is made
	// anew. It never wins; may be empty.
	Own string

	// NeedIPv4 and NeedIPv6 say which addresses the interface must have.
	NeedIPv4, NeedIPv6 bool
}

// Interface is what was chosen, as it was at that time.
type Interface struct {
	Name  string
	Index int
	MTU   int // bytes
	// IPv4 and IPv6 are addresses of the interface; invalid if not needed.
	IPv4, IPv6 netip.Addr
	// PublicIP and PublicIPv6 are what the other nodes are to be told: IPv4
	// and IPv6 unless the options override them.
	PublicIP, PublicIPv6 netip.Addr
	Why                  string // what decided, for the log
}

// String returns "eth0 (192.0.2.1, MTU 1500)".
func (i Interface) String() string {
	s := i.Name + " ("
	for _, a := range i.addrs() {
		s += a.String() + ", "
	}
	return fmt.Sprintf("%sMTU %d)", s, i.MTU)
}

// addrs returns the addresses of i that are used, IPv4 first.
func (i Interface) addrs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{i.IPv4, i.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

// Equal says whether i and o are the same but for why they were chosen.
func (i Interface) Equal(o Interface) bool {
	i.Why = o.Why
	return i == o
}

// Choose chooses in the network namespace of the calling thread; a caller that
// moved there has its goroutine locked to the thread. The error is a *NoneError
// unless o cannot be followed or the host not be read.
func Choose(o Options) (Interface, error) {
	c, err := newChooser(o)
	if err != nil {
		return Interface{}, err
	}
	canReach, err := parseAddr("iface-can-reach", o.CanReach, 0)
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
	for _, way := range c.ways(o.Iface, regexes, canReach) {
		i, err := way()
		if err == nil {
			return i, nil
		}
		tried = append(tried, err)
	}
	return Interface{}, &NoneError{joined(tried), c.host.String()}
}

// NoneError says that no interface will do.
type NoneError struct {
	Tried error  // of each way that was tried, why it led nowhere
	Has   string // the interfaces of the host
}

func (e *NoneError) Error() string {
	return fmt.Sprintf("choose interface: %v; this host has %s; put that right, or name another interface with --iface", e.Tried, e.Has)
}

func (e *NoneError) Unwrap() error { return e.Tried }

func newChooser(o Options) (c chooser, err error) {
	c = chooser{own: o.Own, needIPv4: o.NeedIPv4, needIPv6: o.NeedIPv6}
	if !o.NeedIPv4 && !o.NeedIPv6 {
		return c, errors.New("choose interface: neither IPv4 nor IPv6 is needed")
	}
	if c.publicIP, err = parseAddr("public-ip", o.PublicIP, 32); err != nil {
		return c, err
	}
	c.publicIPv6, err = parseAddr("public-ipv6", o.PublicIPv6, 128)
	return c, err
}

// ways returns what to try, in order.
func (c *chooser) ways(iface []string, regexes []pattern, canReach netip.Addr) []func() (Interface, error) {
	var ways []func() (Interface, error)
	for _, s := range iface {
		if s == "" { // the default route, as in flannel
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

// parseAddr parses the value of a flag; bits is the length of an address of the
// family that it must have, or 0.
func parseAddr(flag, value string, bits int) (netip.Addr, error) {
	if value == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(value)
	if err != nil || bits != 0 && a.BitLen() != bits || a.Zone() != "" {
		want := map[int]string{0: "an IP address", 32: "an IPv4 address", 128: "an IPv6 address without a zone"}[bits]
		return netip.Addr{}, fmt.Errorf("--%s=%s: want %s", flag, value, want)
	}
	return a, nil
}

// pattern is a regular expression for names and addresses.
type pattern struct {
	text  string
	whole *regexp.Regexp // matches all of a string
	part  *regexp.Regexp // matches anywhere in it
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

// joined is errors.Join on one line.
func joined(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}
