package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
)

const aboutReserve = `Reserves a pod subnet permanently: for the node that has its lease, or for the one
that --public-ip names. If there is neither, no node gets the subnet. In a dual-stack
network, name both subnets in one operand: 10.5.7.0/24,fd00:5:7::/64.`

const aboutRelease = `Ends a reservation. If it is for a node, it becomes a lease of one day, which the node
renews while it runs; otherwise it is deleted.`

func runReserve(ctx context.Context, call *command.Call) error {
	c := newStoreCommand(call)
	var l lease.Lease
	c.Func("public-ip", "`IP` of the node that gets the subnet", address(&l.PublicIP, netip.Addr.Is4, "an IPv4 address"))
	c.Func("public-ipv6", "IPv6 address of that node, `IP`", address(&l.PublicIPv6, is6, "an IPv6 address"))
	subnets, help, err := c.subnets(ctx, aboutReserve)
	if help || err != nil {
		return err
	}
	l.Subnet, l.IPv6Subnet = subnets.Subnet, subnets.IPv6Subnet
	return c.ask(ctx, func(ctx context.Context, s *etcd.Store) error {
		got, err := s.Reserve(ctx, l)
		if err != nil {
			return err
		}
		if nodeText(*got) == noNode {
			_, err = fmt.Fprintf(c.Stdout, "%s is reserved: no node gets it\n", subnetText(*got))
		} else {
			_, err = fmt.Fprintf(c.Stdout, "%s is reserved for %s\n", subnetText(*got), nodeText(*got))
		}
		return err
	})
}

func runRelease(ctx context.Context, call *command.Call) error {
	c := newStoreCommand(call)
	l, help, err := c.subnets(ctx, aboutRelease)
	if help || err != nil {
		return err
	}
	return c.ask(ctx, func(ctx context.Context, s *etcd.Store) error {
		got, err := s.Release(ctx, l)
		switch {
		case err != nil:
			return err
		case got == nil:
			_, err = fmt.Fprintf(c.Stdout, "%s is free\n", subnetText(l))
		default:
			_, err = fmt.Fprintf(c.Stdout, "%s is now a lease of %s, until %s unless renewed\n",
				subnetText(*got), nodeText(*got), got.Expiration.Format(time.RFC3339))
		}
		return err
	})
}

// subnets parses a command line with one operand, a subnet.
func (c *storeCommand) subnets(ctx context.Context, about string) (l lease.Lease, help bool, err error) {
	rest, help, err := c.parse(ctx, about, "SUBNET")
	switch {
	case help || err != nil:
		return l, help, err
	case len(rest) == 0:
		return l, false, c.Usagef("no subnet given; want one such as 10.5.7.0/24")
	case len(rest) > 1:
		return l, false, c.Usagef("unexpected argument %q", rest[1])
	}
	if l, err = parseSubnets(rest[0]); err != nil {
		return l, false, c.Usagef("%v", err)
	}
	return l, false, nil
}

func is6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }

// address is a flag whose value is an address of one family.
func address(to *netip.Addr, family func(netip.Addr) bool, want string) func(string) error {
	return func(s string) error {
		a, err := netip.ParseAddr(s)
		if err != nil || !family(a) || a.IsUnspecified() {
			return fmt.Errorf("want %s", want)
		}
		*to = a
		return nil
	}
}
