package doctor

import (
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/ports"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
)

// Plan is what a host without a daemon is to be examined for.
type Plan struct {
	Backends []backend.Kind // which it is to have; at least one must work, see Any
	// Any says that one of Backends is enough, as with --backend=auto.
	Any      bool
	Underlay underlay.Options // the families that it needs are found out
	// KernelPath means that the udp backend is to have --kernel-path.
	KernelPath bool
	// Daemon is the status of a twilld that runs already, or nil. Its devices hold
	// ports that are otherwise to be free.
	Daemon *status.Document
}

// preflight is a run of the checks of a bare host. Those that it shares with a running
// node are the examination's.
type preflight struct {
	Plan
	examination
	probes backend.Probes
}

// Preflight examines whether a daemon can work on this host. It makes a VXLAN device
// for a moment, if that is in the plan and there is none, and network namespaces of its own
// for the kernel path, and changes nothing else.
func Preflight(ctx context.Context, p Plan) []Finding {
	return newPreflight(p, thisHost, backend.Probe).all(ctx)
}

func newPreflight(p Plan, h host, probes backend.Probes) *preflight {
	names := make([]string, len(p.Backends))
	for i, k := range p.Backends {
		names[i] = string(k)
	}
	return &preflight{p, examination{Node: Node{Daemon: &status.Document{Backends: names}}, host: h}, probes}
}

func (x *preflight) all(ctx context.Context) []Finding {
	var all []Finding
	for _, c := range []struct {
		name string
		run  func(context.Context) []Finding
	}{
		{"running", x.running},
		{"underlay", x.underlay},
		{"backends", x.backends},
		{"tun", x.tunDevice},
		{"offloads", x.offloads},
		{"kernel-path", x.kernelPath},
		{"udp-port", x.ports},
		{"forwarding", x.forwarding},
		{"firewall", x.tools},
		{"clock", x.synchronised},
	} {
		if ctx.Err() != nil {
			return append(all, Finding{Check: c.name, Level: Warn, Text: "not checked: " + context.Cause(ctx).Error()})
		}
		found := c.run(ctx)
		for i := range found {
			found[i].Check = c.name
		}
		all = append(all, found...)
	}
	return all
}

func (x *preflight) running(context.Context) []Finding {
	if d := x.Plan.Daemon; d != nil {
		return []Finding{warnf("twill doctor", "twilld %s is already running here, pid %d; use twill doctor to examine it", d.Version, d.PID)}
	}
	return []Finding{okf("twilld is not running here")}
}

func (x *preflight) underlay(context.Context) []Finding {
	o := x.Underlay
	o.NeedIPv4 = true
	i, err := underlay.Choose(o)
	var none *underlay.NoneError
	if errors.As(err, &none) { // a host without IPv4
		o.NeedIPv4, o.NeedIPv6 = false, true
		if i6, err6 := underlay.Choose(o); err6 == nil {
			i, err = i6, nil
		}
	}
	switch {
	case errors.As(err, &none):
		return []Finding{badf("ip route add default via GATEWAY", "%v; twilld waits for one, or set --iface", err)}
	case err != nil:
		return []Finding{badf("", "%v", err)}
	}
	return []Finding{okf("%s: %s", i, i.Why)}
}

// backends probes each backend. One that does not work is bad only if the plan needs
// it.
func (x *preflight) backends(context.Context) []Finding {
	var found []Finding
	usable := 0
	for _, k := range x.Plan.Backends {
		var err error
		remedy := ""
		switch k {
		case backend.VXLAN:
			err, remedy = x.probes.VXLAN(defaultVNI), "modprobe vxlan"
		case backend.UDP:
			err, remedy = x.probes.UDP(), "modprobe tun"
		}
		switch {
		case err == nil:
			usable++
			found = append(found, okf("%s can be used", k))
		case x.Any:
			found = append(found, warnf(remedy, "%s cannot be used: %v", k, err))
		default:
			found = append(found, badf(remedy, "%s cannot be used: %v", k, err))
		}
	}
	if x.Any && usable == 0 {
		found = append(found, badf("", "no backend can be used on this host"))
	}
	return found
}

// defaultVNI is the VNI if the network config names none, as flannel's.
const defaultVNI = 1

// ports checks that the default ports of the backends are free.
func (x *preflight) ports(context.Context) []Finding {
	var found []Finding
	for _, k := range x.Plan.Backends {
		port := map[backend.Kind]int{backend.UDP: udpPort, backend.VXLAN: vxlanPort}[k]
		if port == 0 || x.Plan.Daemon != nil && slices.Contains(x.Plan.Daemon.Backends, string(k)) {
			continue
		}
		switch err := bindable(port); {
		case errors.Is(err, unix.EADDRINUSE):
			found = append(found, badf("", "UDP port %d of %s is in use; %s", port, k, ports.Holder(port)))
		case err != nil:
			found = append(found, warnf("", "bind UDP port %d: %v", port, err))
		}
	}
	if len(found) == 0 {
		found = append(found, okf("the default ports of the backends are free, or in use by twilld"))
	}
	return found
}

// bindable binds a socket to a UDP port of all addresses and closes it.
func bindable(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrInet4{Port: port})
}

// tools looks for the programs by which twilld makes its firewall rules.
func (x *preflight) tools(context.Context) []Finding {
	var have []string
	for _, program := range []string{"iptables", "ip6tables", "nft"} {
		if _, err := exec.LookPath(program); err == nil {
			have = append(have, program)
		}
	}
	switch {
	case slices.Contains(have, "iptables"):
		return []Finding{okf("%s found", strings.Join(have, ", "))}
	case len(have) > 0:
		return []Finding{warnf("apt-get install iptables", "iptables is missing, which twilld uses for its rules unless the network config has EnableNFTables; found %s", strings.Join(have, ", "))}
	}
	return []Finding{warnf("apt-get install iptables", "neither iptables nor nft is installed, so twilld cannot write rules: install one, or start twilld without --ip-masq and with --iptables-forward-rules=false")}
}
