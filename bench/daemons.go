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

	"github.com/twillnet/twill/internal/netlab"
)

// tunLink is the TUN device of twilld and of stock flannel.
const tunLink = "flannel0"

const (
	leaseFileFlag = "--lease-file="
	leasesName    = "leases.json"
)

// daemon is a kind of program that carries a path, one process on each host.
type daemon struct {
	program string
	// args are the arguments on a host.
	args func(*netlab.Host) []string
	// ready tells whether the process on a host has set up its side.
	ready func(*netlab.Host, *process) bool
	// attr is nil for processes that end with this one.
	attr *syscall.SysProcAttr
}

// twill runs twilld on both hosts, with extra flags.
func twill(extra ...string) func(context.Context, *netlab.Topology, Binaries) (*Connection, error) {
	return func(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
		return inTempDir(func(dir string) (*Connection, error) {
			d, err := twilld(bin, topo, dir, extra...)
			if err != nil {
				return nil, err
			}
			return d.connect(ctx, topo, dir)
		})
	}
}

// twilld prepares twilld for the hosts of a topology, with its files in dir.
func twilld(bin Binaries, topo *netlab.Topology, dir string, extra ...string) (*daemon, error) {
	if !exists(bin.Twilld) {
		return nil, fmt.Errorf("%s is not there (build it with: make build)", bin.Twilld)
	}
	leases := filepath.Join(dir, leasesName)
	if err := writeLeases(leases, topo); err != nil {
		return nil, err
	}
	return &daemon{
		program: bin.Twilld,
		args: func(h *netlab.Host) []string {
			return append([]string{
				leaseFileFlag + leases, "--iface=" + netlab.UnderlayLink,
				"--subnet-file=" + subnetFile(dir, h), "--control-socket=" + controlSocket(dir, h),
				"--iptables-forward-rules=false", // the other paths have none either
			}, extra...)
		},
		ready: func(h *netlab.Host, _ *process) bool { return exists(subnetFile(dir, h)) },
	}, nil
}

func subnetFile(dir string, h *netlab.Host) string {
	return filepath.Join(dir, "subnet-"+h.Letter+".env")
}

func controlSocket(dir string, h *netlab.Host) string { return filepath.Join(dir, h.Letter+".sock") }

// announcing is what a node of twill has in its lease when etcd holds it.
var announcing = json.RawMessage(`{"PartialChecksums":true}`)

// writeLeases writes the lease file of all hosts of a topology.
func writeLeases(path string, topo *netlab.Topology) error {
	type entry struct {
		Subnet, IPv6Subnet, PublicIP string
		BackendData                  json.RawMessage
	}
	file := struct {
		Network, IPv6Network string
		EnableIPv6           bool
		Backend              map[string]string
		Leases               []entry
	}{
		Network: netlab.Network.String(), IPv6Network: netlab.Network6.String(), EnableIPv6: true,
		Backend: map[string]string{"Type": "udp"},
	}
	for _, h := range topo.Hosts {
		file.Leases = append(file.Leases, entry{h.Subnet.String(), h.Subnet6.String(), h.Addr.String(), announcing})
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
		return nil, fmt.Errorf("%s is not there (build it with: make peers; amd64 only)", bin.FlannelUDP)
	}
	d := &daemon{
		program: bin.FlannelUDP,
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

// inTempDir runs up with a directory that lasts as long as the connection.
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

// connect starts the daemon on every host, awaits that all are ready, gives
// the pods the MTU of flannel0 and connects them. Logs go to dir. When it fails
// no process is left.
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
	flannel0, err := ns.Netlink().LinkByName(tunLink)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", ns, tunLink, err)
	}
	if err := topo.SetPodMTU(flannel0.Attrs().MTU); err != nil {
		return nil, err
	}
	c, err := between(topo)
	if err != nil {
		return nil, err
	}
	c.daemons = started
	return c, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
