package bench

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// tunnel is a program that joins the hosts through a device and with an MTU that
// this package chooses, unlike a daemon, whose device is flannel0.
type tunnel struct {
	program string
	mtu     int // of the device and of the pods
	// args returns the arguments on a host.
	args func(*netlab.Host) []string
	// raise waits for the process that was started on a host, and does the set-up on that
	// host that the program does not do itself.
	raise func(context.Context, *netlab.Host, *process) error
}

// peerProgram returns the path of a program of bench/peers/tools. They are
// installed beside stock flannel's.
func peerProgram(bin Binaries, name string) (string, error) {
	path := filepath.Join(filepath.Dir(bin.FlannelUDP), name)
	if !exists(path) {
		return "", fmt.Errorf("%s does not exist (build it with: make peers-bench)", path)
	}
	return path, nil
}

// underlayMTU returns the MTU of the wire between the hosts.
func underlayMTU(topo *netlab.Topology) (int, error) {
	ns := topo.Hosts[0].NS
	eth0, err := ns.Netlink().LinkByName(netlab.UnderlayLink)
	if err != nil {
		return 0, fmt.Errorf("%s: find %s: %w", ns, netlab.UnderlayLink, err)
	}
	return eth0.Attrs().MTU, nil
}

// connect starts the program on every host and connects the pods. It returns
// once they have answered each other at full MTU, because the first packet
// triggers the programs' handshake. Logs go to dir. If it fails, it leaves no
// process running.
func (t *tunnel) connect(ctx context.Context, topo *netlab.Topology, dir string) (_ *Connection, err error) {
	var started []*process
	defer func() {
		if err != nil {
			for _, p := range started {
				p.stop() // not kill: wireguard-go removes its socket when it exits cleanly
			}
		}
	}()
	for _, h := range topo.Hosts {
		p, err := startProcess(h.NS, filepath.Join(dir, h.Letter+".log"), nil, t.program, t.args(h)...)
		if err != nil {
			return nil, err
		}
		started = append(started, p)
		if err := t.raise(ctx, h, p); err != nil {
			return nil, fmt.Errorf("%s: %w", h.NS, err)
		}
	}
	if err := topo.SetPodMTU(t.mtu); err != nil {
		return nil, err
	}
	c, err := between(topo)
	if err != nil {
		return nil, err
	}
	if err := answers(ctx, c); err != nil {
		return nil, started[0].failure(err)
	}
	c.daemons = started
	return c, nil
}
