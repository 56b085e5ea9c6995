package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease/etcd"
)

// options is what the command line and the environment ask for, checked. The
// table of flags says what each field means.
type options struct {
	leaseFile  string // empty: leases come from etcd
	subnetFile string
	etcd       etcd.Options // without a Logger
	embedded   embeddedEtcd
	kube       kubernetes
	onLost     onLost
	// renewMargin is how long before its end a lease is renewed, in minutes.
	renewMargin int

	iface         stringList
	ifaceRegex    stringList
	ifaceCanReach netip.Addr
	publicIP      netip.Addr
	publicIPv6    netip.Addr

	backend     backendType
	tunName     string
	threadPairs int
	sourceCheck fastpath.SourceCheck
	switches    fastpath.Switches

	healthzIP     netip.Addr
	healthzPort   int
	controlSocket string
	logFormat     logging.Format
	logLevel      slog.Level
	verbosity     int

	ipMasq        bool
	ipMasqOrderly bool // source ports are not chosen at random
	forwardRules  bool
	resync        int // seconds between two looks at the rules
	blackhole     bool

	version  bool
	help     bool
	cleanup  bool
	takeover bool

	// ignored are the flags of flannel that were set, do nothing here and do
	// no harm. Each is worth a line in the log.
	ignored []ignoredFlag
}

// ignoredFlag is one such flag: how it was set, and why nothing comes of it.
type ignoredFlag struct{ setting, reason string }

// stringList is a flag that may be given more than once.
type stringList []string

func (l *stringList) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *stringList) Set(v string) error {
	*l = append(*l, v)
	return nil
}

// backendType overrides the type that the network configuration names; empty:
// it does not.
type backendType string

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *backendType) UnmarshalText(text []byte) error {
	if len(text) > 0 && !slices.Contains(backend.Types, string(text)) {
		return fmt.Errorf("want one of %s", strings.Join(backend.Types, ", "))
	}
	*b = backendType(text)
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (b backendType) MarshalText() ([]byte, error) { return []byte(b), nil }

// Limits of the kernel.
const (
	maxThreadPairs   = 32 // MAX_TAP_QUEUES of drivers/net/tun.c is 256: four queues a pair to read, and four to write
	maxInterfaceName = 15 // IFNAMSIZ without the final zero byte, netdevice(7)
)

// check finds values that cannot be right whatever the host is like.
func (o *options) check() error {
	switch {
	case o.subnetFile == "":
		return usagef("--subnet-file: the name of a file is missing")
	case o.controlSocket == "":
		return usagef("--socket: the name of a socket is missing")
	case !o.healthzIP.IsValid():
		return usagef("--healthz-ip: an address is missing; 0.0.0.0 stands for all")
	case o.healthzPort < 0 || o.healthzPort > 65535:
		return usagef("--healthz-port: %d is not a port; 1 to 65535, or 0 for none", o.healthzPort)
	case o.renewMargin < 1 || o.renewMargin > 1439:
		return usagef("--subnet-lease-renew-margin: %d is not from 1 to 1439 minutes", o.renewMargin)
	case o.resync < 1 || o.resync > 86400:
		return usagef("--iptables-resync: %d is not from 1 to 86400 seconds", o.resync)
	case o.threadPairs < 0 || o.threadPairs > maxThreadPairs:
		return usagef("--thread-pairs: %d is not from 1 to %d, or 0 to choose by the number of CPUs", o.threadPairs, maxThreadPairs)
	case !interfaceName(o.tunName):
		return usagef("--tun-name: %q cannot name an interface; 1 to %d bytes without white space, slash, colon and percent sign", o.tunName, maxInterfaceName)
	case o.publicIP.IsValid() && !o.publicIP.Is4():
		return usagef("--public-ip: %s is not an IPv4 address; --public-ipv6 takes the other kind", o.publicIP)
	case o.publicIPv6.IsValid() && (!o.publicIPv6.Is6() || o.publicIPv6.Is4In6()):
		return usagef("--public-ipv6: %s is not an IPv6 address; --public-ip takes the other kind", o.publicIPv6)
	}
	if o.takeover && o.embedded.on && o.leaseFile == "" {
		return usagef("--takeover: the running twilld has the data of its etcd open: restart it instead, its pods' connections outlive that")
	}
	if err := o.embedded.check(); err != nil {
		return err
	}
	if err := o.kube.check(o.leaseFile, o.embedded.on); err != nil {
		return err
	}
	if err := o.etcd.Check(); err != nil {
		return usagef("%v", err)
	}
	for _, r := range o.ifaceRegex {
		if _, err := regexp.Compile(r); err != nil {
			return usagef("--iface-regex: %v", err)
		}
	}
	return nil
}

// underlay says which interface to choose, but not for which address families.
func (o *options) underlay() underlay.Options {
	return underlay.Options{
		Iface:      o.iface,
		IfaceRegex: o.ifaceRegex,
		CanReach:   text(o.ifaceCanReach),
		PublicIP:   text(o.publicIP),
		PublicIPv6: text(o.publicIPv6),
	}
}

// namesLink says whether the command line says which interface to choose.
func (o *options) namesLink() bool {
	named := slices.ContainsFunc(slices.Concat(o.iface, o.ifaceRegex), func(s string) bool { return s != "" })
	return named || o.ifaceCanReach.IsValid() || o.publicIP.IsValid() || o.publicIPv6.IsValid()
}

// routesFile is where the plain routes that this host has been given are written
// down: beside the subnet file, of which every daemon of a host has its own.
func (o *options) routesFile() string { return o.subnetFile + ".routes" }

// leasesFile is where the leases known last are written down, for a start without
// the store.
func (o *options) leasesFile() string { return o.subnetFile + ".leases" }

// text is a as it may stand on the command line: empty if there is none.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// interfaceName says whether the kernel takes s as a name, dev_valid_name in
// net/core/dev.c. With a percent sign it would make up the rest itself.
func interfaceName(s string) bool {
	return s != "" && len(s) <= maxInterfaceName && s != "." && s != ".." && !strings.ContainsAny(s, "%/: \t\n\v\f\r")
}

// level is the lowest level that is logged: flannel's -v=1 and more ask for
// what is called debug here.
func (o *options) level() slog.Level {
	if o.verbosity > 0 {
		return min(o.logLevel, slog.LevelDebug)
	}
	return o.logLevel
}
