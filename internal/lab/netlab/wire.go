package netlab

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// connect gives every host its eth0.
func (t *Topology) connect() error {
	if len(t.Hosts) == 2 && t.opts.Impair == nil && t.opts.Loss == 0 {
		return vethPair(t.Hosts[0].NS, UnderlayLink, t.Hosts[1].NS, UnderlayLink, t.opts.MTU)
	}
	var err error
	if t.wire, err = t.namespace("wire", "wire"); err != nil {
		return err
	}
	// The wire is not a host: it must not send packets of its own.
	if err := t.wire.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return err
	}
	for _, h := range t.Hosts {
		port := portName(h)
		if err := vethPair(h.NS, UnderlayLink, t.wire, port, t.opts.MTU); err != nil {
			return err
		}
		if t.opts.Wire == MTU {
			if err := t.wire.switchPort(port); err != nil {
				return err
			}
		}
	}
	if t.opts.Impair != nil {
		t.Relay, err = startRelay(t.wire, t.Hosts, t.opts.MTU, *t.opts.Impair)
		return err
	}
	if err := t.bridgePorts(); err != nil {
		return err
	}
	if t.opts.Loss > 0 {
		return t.lose(t.opts.Loss)
	}
	return nil
}

// portName is the name of the wire's end of a host's eth0.
func portName(h *Host) string { return "port-" + h.Letter }

// bridgePorts joins all hosts in one bridge.
func (t *Topology) bridgePorts() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "br0", t.opts.MTU
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := t.wire.nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("%s: add bridge br0: %w", t.wire, err)
	}
	for _, h := range t.Hosts {
		port, err := t.wire.nl.LinkByName(portName(h))
		if err != nil {
			return fmt.Errorf("%s: find %s: %w", t.wire, portName(h), err)
		}
		if err := t.wire.nl.LinkSetMaster(port, bridge); err != nil {
			return fmt.Errorf("%s: add %s to br0: %w", t.wire, portName(h), err)
		}
	}
	return t.wire.linkUp("br0")
}
