package daemon

import (
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease/etcd"
)

// options holds the checked settings of the command line and the environment.
// The table of flags documents each field.
type options struct {
	leaseFile  string // empty if leases come from elsewhere
	subnetFile string
	etcd       etcd.Options // without a Logger
	embedded   embeddedEtcd
	kube       kubernetes
	onLost     onLost
	// renewMargin is how long before its expiration a lease is renewed, in
	// minutes.
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
	memory      fastpath.Memory
	mtuFloor    int
	switches    fastpath.Switches
	kernelPath  udp.KernelPath

	healthzIP     netip.Addr
	healthzPort   int
	ui            bool
	probeInterval int // seconds; 0: peers are not probed
	controlSocket string
	logFormat     logging.Format
	logLevel      slog.Level
	verbosity     int

	ipMasq        bool
	ipMasqOrderly bool // source ports are not fully randomized
	forwardRules  bool
	resync        int // seconds between two checks of the rules
	blackhole     bool

	dropPrivileges bool

	version  bool
	help     bool
	cleanup  bool
	dryRun   bool
	takeover bool
	reload   bool

	// ignored are the flags of flannel that were set but have no effect here,
	// harmlessly. Each is logged.
	ignored []ignoredFlag
}

// ignoredFlag is a flag without effect: how it was set, and why it has no effect.
type ignoredFlag struct{ setting, reason string }

// stringList is a flag that may be given more than once.
type stringList []string

func (l *stringList) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *stringList) Set(v string) error {
	*l = append(*l, v)
	return nil
}

// backendType overrides the type in the network configuration, unless empty.
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

// Limits of the kernel:
const (
	maxThreadPairs   = 32 // MAX_TAP_QUEUES of drivers/net/tun.c is 256; each pair has four queues to read and four to write
	maxInterfaceName = 15 // IFNAMSIZ without the final zero byte, netdevice(7)
)

// check finds errors that do not depend on the host.
func (o *options) check() error {
	switch {
	case o.subnetFile == "":
		return usagef("--subnet-file: want the name of a file")
	case o.controlSocket == "":
		return usagef("--socket: want the name of a socket")
	case !o.healthzIP.IsValid():
		return usagef("--healthz-ip: want an address; 0.0.0.0 means all")
	case o.healthzPort < 0 || o.healthzPort > 65535:
		return usagef("--healthz-port: %d is not a port; 1 to 65535, or 0 for none", o.healthzPort)
	case o.ui && o.healthzPort == 0:
		return usagef("--ui: the page is served on --healthz-port, which is not set")
	case o.renewMargin < 1 || o.renewMargin > 1439:
		return usagef("--subnet-lease-renew-margin: %d is not from 1 to 1439 minutes", o.renewMargin)
	case o.resync < 1 || o.resync > 86400:
		return usagef("--iptables-resync: %d is not from 1 to 86400 seconds", o.resync)
	case o.probeInterval < 0 || o.probeInterval > 3600:
		return usagef("--probe-interval: %d is not from 1 to 3600 seconds, or 0 for never", o.probeInterval)
	case o.mtuFloor < 0 || o.mtuFloor > math.MaxUint16:
		return usagef("--path-mtu-floor: %d is not from 0 to %d", o.mtuFloor, math.MaxUint16)
	case o.threadPairs < 0 || o.threadPairs > maxThreadPairs:
		return usagef("--thread-pairs: %d is not from 1 to %d, or 0 to choose by the number of CPUs", o.threadPairs, maxThreadPairs)
	case !interfaceName(o.tunName):
		return usagef("--tun-name: %q is not a valid interface name; want 1 to %d bytes without white space, slash, colon and percent sign", o.tunName, maxInterfaceName)
	case o.publicIP.IsValid() && !o.publicIP.Is4():
		return usagef("--public-ip: %s is not an IPv4 address; use --public-ipv6 for IPv6", o.publicIP)
	case o.ifaceCanReach.Zone() != "":
		return usagef("--iface-can-reach: %s has a zone; want an address without one", o.ifaceCanReach)
	case o.publicIPv6.Zone() != "":
		return usagef("--public-ipv6: %s has a zone; want an address at which other nodes can reach this one", o.publicIPv6)
	case o.publicIPv6.IsValid() && (!o.publicIPv6.Is6() || o.publicIPv6.Is4In6()):
		return usagef("--public-ipv6: %s is not an IPv6 address; use --public-ip for IPv4", o.publicIPv6)
	}
	if (o.takeover || o.reload) && o.embedded.on && o.leaseFile == "" {
		return usagef("--takeover, --reload: not possible with --embedded-etcd, since the running twilld has the data of the etcd open: restart it instead; connections of pods survive that")
	}
	if err := o.embedded.check(); err != nil {
		return err
	}
	if err := o.kube.check(o.leaseFile, o.embedded.on); err != nil {
		return err
	}
	if !etcd.Built && o.leaseFile == "" && !o.kube.on {
		return usagef("--lease-file: want the name of a file; this program was built without an etcd client (make build-board): name a file, or use twilld-lite or the full twilld")
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

// underlay returns the options for choosing the interface, without the address
// families.
func (o *options) underlay() underlay.Options {
	return underlay.Options{
		Iface:      o.iface,
		IfaceRegex: o.ifaceRegex,
		CanReach:   o.ifaceCanReach,
		PublicIP:   o.publicIP,
		PublicIPv6: o.publicIPv6,
	}
}

// namesLink reports whether the command line selects the interface.
func (o *options) namesLink() bool {
	named := slices.ContainsFunc(slices.Concat(o.iface, o.ifaceRegex), func(s string) bool { return s != "" })
	return named || o.ifaceCanReach.IsValid() || o.publicIP.IsValid() || o.publicIPv6.IsValid()
}

// routesFile is the path of the record of the plain routes that were added to
// this host. It is beside the subnet file, since every daemon on a host has its own
// subnet file.
func (o *options) routesFile() string { return o.subnetFile + ".routes" }

// leasesFile is the path of the last known leases, for starting without the
// store.
func (o *options) leasesFile() string { return o.subnetFile + ".leases" }

// interfaceName reports whether the kernel accepts s as an interface name
// (dev_valid_name in net/core/dev.c). A percent sign is refused, since the
// kernel would treat the name as a template.
func interfaceName(s string) bool {
	return s != "" && len(s) <= maxInterfaceName && s != "." && s != ".." && !strings.ContainsAny(s, "%/: \t\n\v\f\r")
}

// level is the lowest level that is logged: flannel's -v=1 and higher
// correspond to debug.
func (o *options) level() slog.Level {
	if o.verbosity > 0 {
		return min(o.logLevel, slog.LevelDebug)
	}
	return o.logLevel
}
