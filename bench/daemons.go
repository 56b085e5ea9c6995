package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// tunLink is the TUN device of twilld and of stock flannel.
const tunLink = "flannel0"

const (
	leaseFileFlag = "--lease-file="
	leasesName    = "leases.json"
)

// daemon is a kind of program that carries a path, with one process on each host.
type daemon struct {
	program string
	link    string // the device of each host whose MTU the pods take
	// args returns the arguments on a host.
	args func(*netlab.Host) []string
	// ready reports whether the process on a host has set up its side.
	ready func(*netlab.Host, *process) bool
	// cleanUp are further arguments with which the program removes what it left in the
	// kernel, if that outlives the hosts.
	cleanUp []string
	// attr is nil for processes that end when this one does.
	attr *syscall.SysProcAttr
}

// backend is a backend of twilld, as a path uses it.
type backend struct {
	kind string // in the network configuration
	link string // the device whose MTU the pods use
	// data is the data that a node publishes in its lease. twilld writes it to etcd
	// itself, but a lease file has to contain it.
	data json.RawMessage
}

var (
	udpBackend    = backend{"udp", tunLink, json.RawMessage(`{"PartialChecksums":true}`)}
	kernelBackend = backend{"udp", tunLink, json.RawMessage(`{"PartialChecksums":true,"KernelPath":true}`)}
	vxlanBackend  = backend{"vxlan", "flannel.1", nil}
	hostGWBackend = backend{"host-gw", netlab.UnderlayLink, nil}
)

// twill runs twilld with the udp backend on both hosts, with extra flags.
func twill(extra ...string) func(context.Context, *netlab.Topology, Binaries) (*Connection, error) {
	return udpBackend.run(extra...)
}

// run runs twilld with the backend on both hosts, with extra flags.
func (b backend) run(extra ...string) func(context.Context, *netlab.Topology, Binaries) (*Connection, error) {
	return func(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
		return inTempDir(func(dir string) (*Connection, error) {
			d, err := b.twilld(bin, topo, dir, extra...)
			if err != nil {
				return nil, err
			}
			return d.connect(ctx, topo, dir)
		})
	}
}

// twilld prepares twilld for the hosts of a topology, with its files in dir.
func (b backend) twilld(bin Binaries, topo *netlab.Topology, dir string, extra ...string) (*daemon, error) {
	if !exists(bin.Twilld) {
		return nil, fmt.Errorf("%s does not exist (build it with: make build)", bin.Twilld)
	}
	leases := filepath.Join(dir, leasesName)
	if err := b.writeLeases(leases, topo); err != nil {
		return nil, err
	}
	return &daemon{
		program: bin.Twilld, link: b.link,
		args: func(h *netlab.Host) []string {
			return append([]string{
				leaseFileFlag + leases, "--iface=" + netlab.UnderlayLink,
				"--subnet-file=" + subnetFile(dir, h), "--control-socket=" + controlSocket(dir, h),
				"--iptables-forward-rules=false", // the other paths have no rules either
			}, extra...)
		},
		ready:   func(h *netlab.Host, _ *process) bool { return exists(subnetFile(dir, h)) },
		cleanUp: []string{"--cleanup"},
	}, nil
}

func subnetFile(dir string, h *netlab.Host) string {
	return filepath.Join(dir, "subnet-"+h.Letter+".env")
}

func controlSocket(dir string, h *netlab.Host) string { return filepath.Join(dir, h.Letter+".sock") }

// writeLeases writes the lease file of all hosts of a topology.
func (b backend) writeLeases(path string, topo *netlab.Topology) error {
	type entry struct {
		Subnet, IPv6Subnet, PublicIP, PublicIPv6 string
		BackendData                              json.RawMessage `json:",omitempty"`
	}
	file := struct {
		Network, IPv6Network string
		EnableIPv6           bool
		Backend              map[string]string
		Leases               []entry
	}{
		Network: netlab.Network.String(), IPv6Network: netlab.Network6.String(), EnableIPv6: true,
		Backend: map[string]string{"Type": b.kind},
	}
	for _, h := range topo.Hosts {
		file.Leases = append(file.Leases, entry{h.Subnet.String(), h.Subnet6.String(), h.Addr.String(), h.Addr6.String(), b.data})
	}
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// flannelUDP runs stock flannel's udp backend on both hosts.
func flannelUDP(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
	if !exists(bin.FlannelUDP) {
		return nil, fmt.Errorf("%s does not exist (build it with: make peers; amd64 only)", bin.FlannelUDP)
	}
	d := &daemon{
		program: bin.FlannelUDP, link: tunLink,
		args: func(h *netlab.Host) []string {
			args := []string{
				"--iface=" + netlab.UnderlayLink, "--network=" + netlab.Network.String(),
				"--subnet=" + h.Subnet.String(), "--public-ip=" + h.Addr.String(),
			}
			for _, peer := range topo.Hosts {
				if peer != h {
					args = append(args, "--peer="+peer.Subnet.String()+"="+peer.Addr.String())
				}
			}
			return args
		},
		ready: func(_ *netlab.Host, p *process) bool { return strings.Contains(p.said(), "ready mtu=") },
	}
	return inTempDir(func(dir string) (*Connection, error) { return d.connect(ctx, topo, dir) })
}

// inTempDir runs up with a directory that exists as long as the connection.
func inTempDir(up func(dir string) (*Connection, error)) (*Connection, error) {
	dir, err := os.MkdirTemp("", "twill-bench-")
	if err != nil {
		return nil, err
	}
	c, err := up(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	c.dir = dir
	return c, nil
}

// connect starts the daemon on every host, waits until all are ready, gives
// the pods the MTU of the daemon's device and connects them. Logs go to dir. If it
// fails, it leaves no process running.
func (d *daemon) connect(ctx context.Context, topo *netlab.Topology, dir string) (_ *Connection, err error) {
	var started []*process
	defer func() {
		if err != nil {
			for _, p := range started {
				p.kill()
			}
		}
	}()
	for _, h := range topo.Hosts {
		p, err := startProcess(h.NS, filepath.Join(dir, h.Letter+".log"), d.attr, d.program, d.args(h)...)
		if err != nil {
			return nil, err
		}
		started = append(started, p)
	}
	for i, h := range topo.Hosts {
		p := started[i]
		if err := p.waitUntil(ctx, func() bool { return d.ready(h, p) }); err != nil {
			return nil, fmt.Errorf("%s: %w", h.NS, err)
		}
	}
	ns := topo.Hosts[0].NS
	link, err := ns.Netlink().LinkByName(d.link)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", ns, d.link, err)
	}
	if err := topo.SetPodMTU(link.Attrs().MTU); err != nil {
		return nil, err
	}
	c, err := between(topo)
	if err != nil {
		return nil, err
	}
	c.daemons = started
	if d.cleanUp != nil {
		c.cleanUp = func() error { return d.removeLeft(topo) }
	}
	return c, nil
}

// removeLeft removes what the daemons of all hosts left in the kernel.
func (d *daemon) removeLeft(topo *netlab.Topology) error {
	var errs []error
	for _, h := range topo.Hosts {
		out, err := h.NS.Command(context.Background(), d.program, append(d.args(h), d.cleanUp...)...).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: clean up: %w: %s", h.NS, err, out))
		}
	}
	return errors.Join(errs...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
