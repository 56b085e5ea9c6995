package daemon

import (
	"encoding"
	"errors"
	"flag"
	"log/slog"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/internal/kubeflags"
)

// flagDef is one entry in the table of flags.
type flagDef struct {
	group string // heading in the help text
	name  string // without dashes
	value string // placeholder for its value in the help text; empty if it takes none
	help  string
	// field returns a pointer to the option that the flag sets, which holds the
	// default. A type unknown to define is a bug that every test finds.
	field func(o *options) any
	// ignored is not nil if the flag may have no effect.
	ignored *ignored
}

// ignored is why a flag has no effect.
type ignored struct {
	reason string // and what to do instead
	// when reports whether it applies, given the other flags; nil means always.
	when func(*options) bool
}

// define adds the flag to fs.
func (f *flagDef) define(fs *flag.FlagSet, o *options) {
	switch p := f.field(o).(type) {
	case *string:
		fs.StringVar(p, f.name, *p, "")
	case *int:
		fs.IntVar(p, f.name, *p, "")
	case *bool:
		fs.BoolVar(p, f.name, *p, "")
	case flag.Value:
		fs.Var(p, f.name, "")
	case encoding.TextUnmarshaler:
		fs.TextVar(p, f.name, p.(encoding.TextMarshaler), "")
	}
	if want := wanted(f.field(o)); want != "" {
		fl := fs.Lookup(f.name)
		fl.Value = explained{fl.Value, want}
	}
}

// wanted describes the valid values of a flag if the type's own parser does not
// do so in terms of the command line.
func wanted(field any) string {
	switch field.(type) {
	case *int:
		return "a whole number"
	case *netip.Addr:
		return "an IP address"
	case *slog.Level:
		return "debug, info, warn or error"
	}
	return ""
}

// explained is a flag value whose errors describe the valid values.
type explained struct {
	flag.Value
	want string
}

// Set implements flag.Value.
func (e explained) Set(s string) error {
	if e.Value.Set(s) != nil {
		return errors.New("want " + e.want)
	}
	return nil
}

// Groups of flags, in the order of the help text.
const (
	groupLease      = "Leases"
	groupInterface  = "Interface to the other nodes"
	groupDataplane  = "Data plane (none of these flags exist in flannel)"
	groupObserve    = "Health, status, logs"
	groupRules      = "Firewall rules and routes"
	groupEtcd       = "etcd"
	groupKubernetes = "Kubernetes"
)

var groups = []string{
	groupLease, groupEtcd, groupInterface, groupRules, groupDataplane, groupObserve, groupKubernetes,
}

var (
	onlyEtcd = &ignored{"leases come from the file of --lease-file", fromFile}
	expiring = &ignored{"leases in a file do not expire", fromFile}
	onlyKube = &ignored{"it has an effect only with --kube-subnet-mgr", func(o *options) bool { return !o.kube.on }}
)

func fromFile(o *options) bool { return o.leaseFile != "" }

// anyString is the field of flags whose value is unused.
func anyString(*options) any { return new(string) }

// flags is the table of all flags: flannel's and twilld's own.
var flags = slices.Concat(hostFlags, switchFlags(), serviceFlags, etcdFlags(), embeddedFlags, kubernetesFlags())

// renamed maps the former names of flags, which are still accepted, to the
// present ones.
var renamed = map[string]string{"control-socket": "socket"}

var hostFlags = []flagDef{
	{groupLease, "lease-file", "FILE",
		"JSON file with the network, the backend and the leases of all nodes, instead of etcd; changes are applied at once (not flannel's)",
		func(o *options) any { return &o.leaseFile }, nil},
	{groupLease, "subnet-file", "FILE",
		"file with the node's subnet and MTU, for the CNI plugin",
		func(o *options) any { return &o.subnetFile }, nil},
	{groupLease, "subnet-lease-renew-margin", "MINUTES",
		"how long before its expiration the node's lease is renewed, 1 to 1439",
		func(o *options) any { return &o.renewMargin }, expiring},
	{groupLease, "on-lease-lost", "reacquire|exit",
		"what to do when the node's lease has expired or belongs to another node: acquire one again, perhaps with another subnet, or exit (not flannel's)",
		func(o *options) any { return &o.onLost }, expiring},

	{groupInterface, "iface", "NAME|IP",
		"interface, by name or address; may be repeated, the first that exists is used (default: the interface of the default route)",
		func(o *options) any { return &o.iface }, nil},
	{groupInterface, "iface-regex", "REGEX",
		"interface, by a regular expression; may be repeated, tried after --iface. A match of the whole name takes precedence over a partial one; interfaces of container networks never match",
		func(o *options) any { return &o.ifaceRegex }, nil},
	{groupInterface, "iface-can-reach", "IP",
		"use the interface through which the kernel sends to this address",
		func(o *options) any { return &o.ifaceCanReach }, nil},
	{groupInterface, "public-ip", "IP",
		"IPv4 address at which other nodes reach this one (default: the interface's)",
		func(o *options) any { return &o.publicIP }, nil},
	{groupInterface, "public-ipv6", "IP",
		"the same for IPv6",
		func(o *options) any { return &o.publicIPv6 }, nil},

	{groupDataplane, "backend", "TYPE",
		"alloc, auto, host-gw, udp or vxlan on this node, overriding the type in the network configuration. auto: vxlan where the kernel supports it, else udp; for each peer the best backend that both nodes support",
		func(o *options) any { return &o.backend }, nil},
	{groupDataplane, "tun-name", "NAME",
		"name of the TUN device",
		func(o *options) any { return &o.tunName }, nil},
	{groupDataplane, "thread-pairs", "N",
		"number of thread pairs, each of one thread that sends and one that receives; 0: depends on the number of CPUs",
		func(o *options) any { return &o.threadPairs }, nil},
	{groupDataplane, "source-check", "MODE",
		"accept datagrams from a peer's public IP with an inner source in that peer's subnets (strict), with an inner source in any peer's subnets (inner), or all (off)",
		func(o *options) any { return &o.sourceCheck }, nil},
	{groupDataplane, "memory", "PROFILE",
		"memory for packets in flight in the udp backend: normal; small, with smaller batches and socket buffers; or auto, which means small if the host or the container has less than 256 MiB",
		func(o *options) any { return &o.memory }, nil},
	{groupDataplane, "path-mtu-floor", "BYTES",
		"verify path MTUs below this with probes before they are used, since any host can forge the ICMP error that claims one (needs --mtu-probes); 0: accept all",
		func(o *options) any { return &o.mtuFloor }, nil},
	{groupDataplane, "kernel-path", "off|auto|tc",
		"let BPF programs in the kernel carry packets to and from udp peers that have this enabled, too: with less CPU time, and even while twilld is not running. auto: if a self-test passes; tc: do not start without it. docs/kernel-path.md describes what else changes",
		func(o *options) any { return &o.kernelPath }, nil},
}

var serviceFlags = []flagDef{
	{groupObserve, "healthz-ip", "IP",
		"address on which /healthz, /readyz and /metrics are served",
		func(o *options) any { return &o.healthzIP }, nil},
	{groupObserve, "healthz-port", "PORT",
		"port of /healthz, /readyz and /metrics; 0: they are not served",
		func(o *options) any { return &o.healthzPort }, nil},
	{groupObserve, "ui", "",
		"serve a read-only page for browsers on that port, under /ui/: this node, its peers with their traffic, drops, offloads and what twill doctor finds; open to every host that can reach the port (not flannel's)",
		func(o *options) any { return &o.ui }, nil},
	{groupObserve, "probe-interval", "SECONDS",
		"interval at which each peer is pinged, along the path of its pods' packets; round-trip time, loss and the time of the last answer are in twill status, twill top and /metrics; 0: never (not flannel's)",
		func(o *options) any { return &o.probeInterval }, nil},
	{groupObserve, "socket", "PATH",
		"unix socket for the twill commands (not flannel's)",
		func(o *options) any { return &o.controlSocket }, nil},
	{groupObserve, "log-format", "text|json",
		"format of the log on standard error (not flannel's)",
		func(o *options) any { return &o.logFormat }, nil},
	{groupObserve, "log-level", "LEVEL",
		"lowest level that is logged: debug, info, warn or error (not flannel's)",
		func(o *options) any { return &o.logLevel }, nil},
	{groupObserve, "v", "N",
		"1 or more means --log-level=debug",
		func(o *options) any { return &o.verbosity }, nil},
	{groupObserve, "vmodule", "PATTERN=N,...",
		"ignored: there are no log levels per source file",
		anyString, &ignored{"there are no log levels per source file; use -v or --log-level", nil}},
	{groupObserve, "log_backtrace_at", "FILE:LINE",
		"ignored: log lines have no stack traces",
		anyString, &ignored{"log lines have no stack traces", nil}},
	{groupObserve, "takeover", "",
		"take over from the twilld that runs on this host, at --socket: it forwards until this one is ready, and continues if this one fails. No packets are lost (not flannel's)",
		func(o *options) any { return &o.takeover }, nil},
	{groupObserve, "reload", "",
		"start a twilld with --takeover in the background, and exit once it has taken over; if it fails, the running one continues. For ExecReload= of the service (not flannel's)",
		func(o *options) any { return &o.reload }, nil},
	{groupObserve, "drop-privileges", "",
		"drop the capabilities that these settings do not need; docs/systemd.md lists them (not flannel's)",
		func(o *options) any { return &o.dropPrivileges }, nil},
	{groupObserve, "check", "",
		"check whether twilld would start here with this command line and the network config, and exit; nothing is changed (not flannel's)",
		func(o *options) any { return &o.dryRun }, nil},
	{groupObserve, "version", "",
		"print the version and exit",
		func(o *options) any { return &o.version }, nil},

	{groupRules, "ip-masq", "",
		"masquerade packets of pods that leave the network. Without this flag the CNI bridge plugin does so, since FLANNEL_IPMASQ is false",
		func(o *options) any { return &o.ipMasq }, nil},
	{groupRules, "ip-masq-fully-random-disable", "",
		"do not randomize source ports when masquerading",
		func(o *options) any { return &o.ipMasqOrderly }, nil},
	{groupRules, "iptables-forward-rules", "",
		"accept packets of the network in FORWARD, regardless of the policy of that chain",
		func(o *options) any { return &o.forwardRules }, nil},
	{groupRules, "iptables-resync", "SECONDS",
		"how often to check that rules, blackhole routes and subnet file still exist",
		func(o *options) any { return &o.resync }, nil},
	{groupRules, "ip-blackhole-route", "",
		"drop packets to unused addresses of the node's subnet instead of sending them along the default route",
		func(o *options) any { return &o.blackhole }, nil},
	{groupRules, "cleanup", "",
		"remove what twilld or flannel has left on this host, and exit: TUN and VXLAN devices with their routes, plain routes to peers, firewall rules, blackhole routes, the subnet file and the control socket. The data of --embedded-etcd is kept. Refused while a daemon is running (not flannel's)",
		func(o *options) any { return &o.cleanup }, nil},
}

// switchFlags returns the flags of the offloads.
func switchFlags() []flagDef {
	defs := make([]flagDef, len(fastpath.SwitchFlags))
	for i, f := range fastpath.SwitchFlags {
		defs[i] = flagDef{groupDataplane, f.Name, "auto|on|off", f.Help, func(o *options) any { return f.Field(&o.switches) }, nil}
	}
	return defs
}

// etcdFlags returns the flags for etcd, which the commands of twill have too.
func etcdFlags() []flagDef {
	defs := make([]flagDef, len(etcdflags.All))
	for i, f := range etcdflags.All {
		defs[i] = flagDef{groupEtcd, f.Name, f.Value, f.Help, func(o *options) any { return f.Field(&o.etcd) }, onlyEtcd}
	}
	return defs
}

var embeddedFlags = []flagDef{
	{groupEtcd, "embedded-etcd", "[=DIR]",
		"run an etcd in this daemon, for a first node or a single machine, with its data in DIR (default: etcd in systemd's state directory, or /var/lib/twill/etcd). The daemon uses it unless --etcd-endpoints names another (not flannel's)",
		func(o *options) any { return &o.embedded }, onlyEtcd},
	{groupEtcd, "embedded-etcd-listen", "IP[:PORT]",
		"address on which it serves other nodes, with TLS and certificates on both sides: run \"twill invite\" here and \"twill join\" on each of them (default: only the loopback) (not flannel's)",
		func(o *options) any { return &o.embedded.listen }, onlyEtcd},
	{groupEtcd, "embedded-etcd-plaintext", "",
		"serve other nodes without TLS: any host that can reach the address can read and change the leases (not flannel's)",
		func(o *options) any { return &o.embedded.plaintext }, onlyEtcd},
}

// kubernetesFlags returns the flags for Kubernetes that the commands of twill have
// too, and the daemon's own.
func kubernetesFlags() []flagDef {
	defs := []flagDef{
		{groupKubernetes, kubeflags.Manager, "",
			"use the podCIDRs of the cluster's nodes as leases, instead of etcd; the environment names this node, by NODE_NAME or by POD_NAME and POD_NAMESPACE",
			func(o *options) any { return &o.kube.on }, nil},
	}
	for _, f := range kubeflags.All {
		defs = append(defs, flagDef{groupKubernetes, f.Name, f.Value, f.Help, func(o *options) any { return f.Field(&o.kube.Source) }, onlyKube})
	}
	return append(defs, flagDef{groupKubernetes, "set-node-network-unavailable", "",
		"set the node's condition NetworkUnavailable to False once its pods can communicate",
		func(o *options) any { return &o.kube.Condition }, onlyKube})
}
