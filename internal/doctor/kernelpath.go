package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
)

// kernelPath checks what keeps the kernel from carrying packets of the udp backend where
// --kernel-path asks for it.
func (x *examination) kernelPath(ctx context.Context) []Finding {
	o := x.kernelOffload()
	switch {
	case o == nil:
		return []Finding{okf("not in use: --kernel-path is off")}
	case !o.InForce:
		return []Finding{warnf("", "user space carries all packets: %s", o.Why)}
	}
	var found []Finding
	if d := x.Daemon.Underlay; d != nil {
		found = append(found, routesFrom(d.Name)...)
	}
	if in := x.kernelInput(); in != "" {
		found = append(found, admits(in)...)
	}
	found = append(found, x.kernelPorts(ctx)...)
	if len(found) == 0 {
		found = append(found, okf("active for %d of %d udp peers", len(x.kernelPeers()), x.udpPeers()))
	}
	return found
}

// kernelOffload returns the state of the kernel path, or nil if it is not wanted.
func (x *examination) kernelOffload() *status.Offload {
	dp := x.dataplane()
	if dp == nil {
		return nil
	}
	for i := range dp.Offloads {
		if dp.Offloads[i].Name == backend.KernelPathFlag {
			return &dp.Offloads[i]
		}
	}
	return nil
}

// kernelInput returns the interface that packets from the kernel path arrive on, or "".
func (x *examination) kernelInput() string {
	o := x.kernelOffload()
	if o == nil || !o.InForce {
		return ""
	}
	if tun := x.dataplane().TUN(); tun != nil {
		return backend.KernelInput(tun.Name)
	}
	return ""
}

// kernelPeers returns the peers that the kernel carries packets to.
func (x *examination) kernelPeers() (all []netip.Addr) {
	for _, p := range x.dataplane().Peers {
		if p.Kernel {
			all = append(all, p.PublicIP)
		}
	}
	return all
}

func (x *examination) udpPeers() (n int) {
	for _, p := range x.dataplane().Peers {
		if p.Counted() {
			n++
		}
	}
	return n
}

// routesFrom checks that programs may look up routes on the underlay interface, which
// takes forwarding there (BPF_FIB_LKUP_RET_FWD_DISABLED).
func routesFrom(underlay string) []Finding {
	key := "net/ipv4/conf/" + underlay + "/forwarding"
	switch n, err := sysctl(key); {
	case errors.Is(err, fs.ErrNotExist):
		return nil // the interface is gone, which other checks report
	case err != nil:
		return []Finding{warnf("", "%v", err)}
	case n == 0:
		return []Finding{warnf(setSysctl(key, 1), "%s is 0: the kernel path finds no route on that interface, so user space carries all packets", key)}
	}
	return nil
}

// admits checks that no reverse path filter drops what arrives on the interface in. A loose
// one does too if the interface has no address; twilld gives it one where all interfaces have
// a filter.
func admits(in string) []Finding {
	key := "net/ipv4/conf/" + in + "/rp_filter"
	own, err := sysctl(key)
	all, errAll := sysctl("net/ipv4/conf/all/rp_filter")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{badf("systemctl restart twilld", "interface %s, on which packets from the kernel path arrive, does not exist", in)}
	case err != nil || errAll != nil:
		return []Finding{warnf("", "%v", cmp.Or(err, errAll))}
	case all == 0 && own != 0:
		return []Finding{badf(setSysctl(key, 0), dropsSources, in, own)}
	case max(own, all) == strict:
		return []Finding{badf(setSysctl(key, loose), dropsSources, in, max(own, all))}
	}
	return nil
}

const dropsSources = "the reverse path filter of %s is %d: the kernel drops packets that arrive there, because the routes to the peers use another interface"

// kernelPorts finds peers whose datagrams INPUT drops. Those of the kernel path do not pass
// it, so that only some packets are lost.
func (x *examination) kernelPorts(ctx context.Context) []Finding {
	peers := x.kernelPeers()
	if len(peers) == 0 {
		return nil
	}
	rules, err := x.filter(ctx, "iptables")
	if err != nil {
		return nil // udp-port reports it
	}
	p := Packet{Proto: "udp", Port: x.portOf("udp")}
	if x.Daemon.Underlay != nil {
		p.In = x.Daemon.Underlay.Name
	}
	for _, p.Src = range peers {
		if f, ok := closed(rules, p); ok {
			return []Finding{warnf(f.Remedy, "%s; datagrams of the kernel path bypass INPUT and still arrive, but packets that it leaves to user space are lost", f.Text)}
		}
	}
	return nil
}

// daemonSelfTest has twilld make the self-test of the kernel path, so that this program need
// not contain BPF. twilld is beside this program, or in PATH.
func daemonSelfTest(ctx context.Context) error {
	program := "twilld"
	if self, err := os.Executable(); err == nil {
		if beside := filepath.Join(filepath.Dir(self), program); unix.Access(beside, unix.X_OK) == nil {
			program = beside
		}
	}
	// What it says of the other settings does not matter here.
	out, err := output(ctx, program, "--check", "--"+backend.KernelPathFlag+"=auto", "--lease-file=/dev/null")
	for line := range strings.Lines(string(out)) {
		level, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
		switch {
		case name != backend.KernelPathFlag:
		case level == "ok":
			return nil
		default:
			return errors.New(strings.TrimPrefix(strings.TrimSpace(text), "unavailable: "))
		}
	}
	return fmt.Errorf("run the self-test with %s: %w", program, cmp.Or(err, errors.New("it has another version")))
}

// kernelPath tries whether a daemon with --kernel-path can use it on this host.
func (x *preflight) kernelPath(ctx context.Context) []Finding {
	if !x.Plan.KernelPath {
		return nil
	}
	if why := x.selfTest(ctx); why != nil {
		return []Finding{warnf("", "user space would carry all packets: %v", why)}
	}
	o := x.Plan.Underlay
	o.NeedIPv4 = true
	i, err := underlay.Choose(o)
	if err != nil {
		return []Finding{warnf("", "user space would carry all packets: the kernel path needs an underlay with IPv4: %v", err)}
	}
	if found := routesFrom(i.Name); len(found) > 0 {
		return found
	}
	return []Finding{okf("the self-test passed: the kernel can carry packets to other nodes with the kernel path")}
}
