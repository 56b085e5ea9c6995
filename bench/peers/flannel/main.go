//go:build linux && amd64 && cgo

// Flannel-udp is a node that runs stock flannel's udp backend, with its peers from the
// command line: the backend's own TUN set-up, lease watch and C forwarding loop,
// unchanged. Tests and the laboratory use it as the other host if they do not need a lease
// store; otherwise they run flannel's own main.
//
// It prints "ready mtu=N" on standard output when the device is up and the peers have been
// passed to the backend. It logs to standard error and runs until SIGTERM or SIGINT.
// flannel0 and its route disappear with the process.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/backend/udp"
)

// node is the parsed command line: one host of the network and its peers.
type node struct {
	iface    string
	network  netip.Prefix
	subnet   netip.Prefix
	publicIP netip.Addr
	peers    []peer
}

// peer is another host: its pod subnets and the address where it is reached.
type peer struct {
	subnet   netip.Prefix
	publicIP netip.Addr
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()

	n, err := parseArgs(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "flannel-udp:", err)
		os.Exit(2)
	}
	if err := n.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "flannel-udp:", err)
		os.Exit(1)
	}
}

func parseArgs(args []string) (node, error) {
	var n node
	fs := flag.NewFlagSet("flannel-udp", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main prints the error
	fs.StringVar(&n.iface, "iface", "", "`interface` that reaches the other hosts")
	fs.TextVar(&n.network, "network", netip.Prefix{}, "IPv4 `prefix` of all pods")
	fs.TextVar(&n.subnet, "subnet", netip.Prefix{}, "IPv4 `prefix` of the pods on this host")
	fs.TextVar(&n.publicIP, "public-ip", netip.Addr{}, "IPv4 `address` of the interface, bound and announced")
	fs.Func("peer", "another host as `subnet=address`; repeat for more", func(s string) error {
		sub, addr, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want subnet=address, such as 10.5.2.0/24=172.31.9.12")
		}
		var p peer
		var err error
		if p.subnet, err = netip.ParsePrefix(sub); err != nil {
			return err
		}
		if p.publicIP, err = netip.ParseAddr(addr); err != nil {
			return err
		}
		n.peers = append(n.peers, p)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(os.Stderr)
			fs.PrintDefaults()
		}
		return n, err
	}
	if fs.NArg() > 0 {
		return n, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return n, n.validate()
}

// validate refuses values that flannel's IPv4-only types would panic on or
// silently mishandle.
func (n node) validate() error {
	if n.iface == "" {
		return errors.New("--iface is missing")
	}
	if !n.network.IsValid() || !n.network.Addr().Is4() || n.network != n.network.Masked() {
		return fmt.Errorf("--network %s: want an IPv4 prefix without host bits", n.network)
	}
	hosts := append([]peer{{n.subnet, n.publicIP}}, n.peers...)
	for i, h := range hosts {
		flags := "--subnet, --public-ip"
		if i > 0 {
			flags = "--peer"
		}
		if !h.publicIP.Is4() {
			return fmt.Errorf("%s: address %s is not IPv4", flags, h.publicIP)
		}
		if !h.subnet.IsValid() || h.subnet != h.subnet.Masked() {
			return fmt.Errorf("%s: subnet %s: want an IPv4 prefix without host bits", flags, h.subnet)
		}
		if !n.network.Contains(h.subnet.Addr()) || h.subnet.Bits() < n.network.Bits() {
			return fmt.Errorf("%s: subnet %s is not inside --network %s", flags, h.subnet, n.network)
		}
	}
	return nil
}

// run brings the node up and forwards until ctx ends.
func (n node) run(ctx context.Context) error {
	ext, err := externalInterface(n.iface, n.publicIP)
	if err != nil {
		return err
	}
	leases := newLeases(n)
	config, err := leases.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	be, err := udp.New(leases, ext)
	if err != nil {
		return fmt.Errorf("udp backend: %w", err)
	}
	var wg sync.WaitGroup
	nw, err := be.RegisterNetwork(ctx, &wg, config)
	if err != nil {
		return fmt.Errorf("udp backend: register network %s: %w", n.network, err)
	}
	wg.Go(func() { nw.Run(ctx) })
	select {
	case <-leases.delivered:
		fmt.Printf("ready mtu=%d\n", nw.MTU())
	case <-ctx.Done():
	}
	wg.Wait()
	return nil
}

// externalInterface returns what flanneld's interface search would have found.
func externalInterface(name string, addr netip.Addr) (*backend.ExternalInterface, error) {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("--iface %s: %w", name, err)
	}
	addrs, err := ifc.Addrs()
	if err != nil {
		return nil, fmt.Errorf("--iface %s: list addresses: %w", name, err)
	}
	for _, a := range addrs {
		if ipn, ok := a.(*net.IPNet); ok && ipn.IP.Equal(addr.AsSlice()) {
			return &backend.ExternalInterface{
				Iface:     ifc,
				IfaceName: name,
				IfaceAddr: ipn.IP,
				ExtAddr:   ipn.IP,
			}, nil
		}
	}
	return nil, fmt.Errorf("--public-ip %s is not an address of %s, which has %v", addr, name, addrs)
}
