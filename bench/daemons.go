package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/twillnet/twill/internal/netlab"
)

// twill runs twilld on both hosts, with extra flags.
func twill(extra ...string) func(context.Context, *netlab.Topology, Binaries) (*Connection, error) {
	return func(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
		dir, err := os.MkdirTemp("", "twill-bench-")
		if err != nil {
			return nil, err
		}
		leases := filepath.Join(dir, "leases.json")
		if err := writeLeases(leases, topo); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		return runDaemons(ctx, topo, dir, func(h *netlab.Host) (*process, func() bool, error) {
			subnetFile := filepath.Join(dir, "subnet-"+h.Letter+".env")
			args := append(twilldArgs(leases, subnetFile, filepath.Join(dir, h.Letter+".sock")), extra...)
			p, err := startProcess(h.NS, bin.Twilld, args...)
			return p, func() bool { return exists(subnetFile) }, err
		})
	}
}

// twilldArgs are the arguments of a twilld inside a host.
func twilldArgs(leases, subnetFile, socket string) []string {
	return []string{
		"--lease-file=" + leases, "--iface=" + netlab.UnderlayLink,
		"--subnet-file=" + subnetFile, "--control-socket=" + socket,
	}
}

// writeLeases writes the lease file of all hosts of a topology.
func writeLeases(path string, topo *netlab.Topology) error {
	type leaseEntry struct {
		Subnet, IPv6Subnet, PublicIP, BackendType string
	}
	file := struct {
		Network, IPv6Network string
		EnableIPv6           bool
		Backend              map[string]string
		Leases               []leaseEntry
	}{
		Network: netlab.Network.String(), IPv6Network: netlab.Network6.String(), EnableIPv6: true,
		Backend: map[string]string{"Type": "udp"},
	}
	for _, h := range topo.Hosts {
		file.Leases = append(file.Leases, leaseEntry{h.Subnet.String(), h.Subnet6.String(), h.Addr.String(), "udp"})
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
	return runDaemons(ctx, topo, "", func(h *netlab.Host) (*process, func() bool, error) {
		args := []string{
			"--iface=" + netlab.UnderlayLink, "--network=" + netlab.Network.String(),
			"--subnet=" + h.Subnet.String(), "--public-ip=" + h.Addr.String(),
		}
		for _, peer := range topo.Hosts {
			if peer != h {
				args = append(args, "--peer="+peer.Subnet.String()+"="+peer.Addr.String())
			}
		}
		p, err := startProcess(h.NS, bin.FlannelUDP, args...)
		return p, func() bool { return strings.Contains(p.log.String(), "ready mtu=") }, err
	})
}

// runDaemons starts a daemon on each host, awaits that all are ready, gives
// the pods the MTU of flannel0 and connects them. start also returns how to
// tell that its daemon is ready. The files in dir last as long as the
// connection.
func runDaemons(ctx context.Context, topo *netlab.Topology, dir string,
	start func(*netlab.Host) (*process, func() bool, error)) (_ *Connection, err error) {
	c := &Connection{topo: topo, dir: dir}
	defer func() {
		if err != nil {
			for _, p := range c.daemons {
				p.cmd.Process.Kill()
				<-p.done
			}
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	var ready []func() bool
	for _, h := range topo.Hosts {
		p, isReady, err := start(h)
		if err != nil {
			return nil, err
		}
		c.daemons, ready = append(c.daemons, p), append(ready, isReady)
	}
	for i, p := range c.daemons {
		if err := p.waitUntil(ctx, ready[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", topo.Hosts[i].NS, err)
		}
	}
	flannel0, err := topo.Hosts[0].NS.Netlink().LinkByName(tunLink)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", topo.Hosts[0].NS, tunLink, err)
	}
	if err := topo.SetPodMTU(flannel0.Attrs().MTU); err != nil {
		return nil, err
	}
	pods, err := between(topo)
	if err != nil {
		return nil, err
	}
	pods.daemons, pods.dir = c.daemons, c.dir
	return pods, nil
}

// tunLink is the TUN device of twilld and of stock flannel.
const tunLink = "flannel0"

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
