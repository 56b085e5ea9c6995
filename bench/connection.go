package bench

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// Endpoint is where traffic starts or ends.
type Endpoint struct {
	NS   *netlab.Namespace
	Addr netip.Addr
}

// Connection is an established path: its two ends, what fits through it, and the
// daemons that carry it.
type Connection struct {
	Client, Server Endpoint
	MTU            int // of the ends' interface: the largest IP packet
	topo           *netlab.Topology
	daemons        []*process // one on each host, or none
	dir            string     // of the daemons' files; empty if there are none
	// cleanUp removes what outlives daemons and hosts; nil if nothing does.
	cleanUp func() error
	// carried is the rate, in datagrams per second, that was carried last time.
	carried map[traffic]float64
}

// pids are the daemons' process IDs.
func (c *Connection) pids() []int {
	var pids []int
	for _, d := range c.daemons {
		pids = append(pids, d.pid())
	}
	return pids
}

// Close tears the path down, with its hosts and pods.
func (c *Connection) Close() error {
	var errs []error
	for _, d := range c.daemons {
		errs = append(errs, d.stop())
	}
	if c.cleanUp != nil {
		errs = append(errs, c.cleanUp())
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir), c.topo.Close())...)
}

// between connects the pods of the topology's two hosts.
func between(topo *netlab.Topology) (*Connection, error) {
	end := func(h *netlab.Host) Endpoint {
		return Endpoint{h.Pods[0].NS, h.Pods[0].Addr}
	}
	c := &Connection{Client: end(topo.Hosts[0]), Server: end(topo.Hosts[1]), topo: topo, carried: make(map[traffic]float64)}
	eth0, err := c.Client.NS.Netlink().LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("%s: find eth0: %w", c.Client.NS, err)
	}
	c.MTU = eth0.Attrs().MTU
	return c, nil
}
