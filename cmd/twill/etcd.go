package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
)

// aboutEtcd ends the help text of the commands that ask etcd.
const aboutEtcd = `

The flags --etcd-* and their variables FLANNELD_ETCD_* are twilld's.`

// etcdCommand is a subcommand that asks the daemon's etcd.
type etcdCommand struct {
	*command.Call
	etcd    *etcdflags.Flags
	timeout time.Duration
}

// newEtcdCommand defines the flags that all of them have.
func newEtcdCommand(call *command.Call) *etcdCommand {
	c := &etcdCommand{Call: call}
	c.etcd = etcdflags.Define(c.FlagSet)
	c.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for etcd, `TIME`")
	return c
}

// parse parses flags and operands; usage stands for the operands in the help
// text. It returns true where help was asked for.
func (c *etcdCommand) parse(about, usage string) (operands []string, help bool, err error) {
	operands, help, err = c.ParseOperands(about+aboutEtcd, usage)
	if help || err != nil {
		return nil, help, err
	}
	if c.timeout <= 0 {
		return nil, false, c.Usagef("--timeout %s: want more than 0", c.timeout)
	}
	if err := c.etcd.Settle(os.LookupEnv); err != nil {
		return nil, false, c.Usagef("%v", err)
	}
	return operands, false, nil
}

// ask calls f with an open store and a context that ends with the timeout.
// Warnings of the store go to stderr.
func (c *etcdCommand) ask(ctx context.Context, f func(context.Context, *etcd.Store) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	o := c.etcd.Options
	o.Logger = logging.New(c.Stderr, logging.Text, slog.LevelWarn)
	store, err := etcd.Open(ctx, o)
	if err != nil {
		return err
	}
	defer store.Close()
	return f(ctx, store)
}

// parseSubnets reads the name of a lease: an IPv4 subnet, an IPv6 subnet, both
// with a comma in between, or the key as it stands in etcd.
func parseSubnets(text string) (lease.Lease, error) {
	var l lease.Lease
	if !strings.Contains(text, "/") {
		subnet, ipv6Subnet, err := lease.ParseKey(lease.Key(text))
		if err != nil {
			return l, fmt.Errorf("%q is no subnet; want one such as 10.5.7.0/24", text)
		}
		l.Subnet, l.IPv6Subnet = subnet, ipv6Subnet
		return l, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(part)
		if err != nil || p.Bits() == 0 {
			return l, fmt.Errorf("%q is no subnet; want one such as 10.5.7.0/24", part)
		}
		if p != p.Masked() {
			return l, fmt.Errorf("%s is an address inside of the subnet %s; name that", part, p.Masked())
		}
		to := &l.Subnet
		if p.Addr().Is6() {
			to = &l.IPv6Subnet
		}
		if to.IsValid() {
			return l, fmt.Errorf("%q names two subnets of one address family", text)
		}
		*to = p
	}
	return l, nil
}

// subnetText names the subnets of a lease as parseSubnets reads them.
func subnetText(l lease.Lease) string {
	var parts []string
	for _, p := range l.Subnets() {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ",")
}

// nodeText names the node of a lease by its public addresses.
func nodeText(l lease.Lease) string {
	var parts []string
	for _, a := range []netip.Addr{l.PublicIP, l.PublicIPv6} {
		if a.IsValid() {
			parts = append(parts, a.String())
		}
	}
	if len(parts) == 0 {
		return "nobody"
	}
	return strings.Join(parts, ",")
}
