//go:build linux && amd64 && cgo

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	_ "github.com/flannel-io/flannel/pkg/backend/hostgw" // registers itself, as udp does
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"  // so does this
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
)

// etcdNode is the configuration of a node that gets its lease from etcd.
type etcdNode struct {
	endpoints   string // comma-separated URLs
	prefix      string
	iface       string
	subnetFile  string
	renewMargin int // minutes
}

func (n etcdNode) validate() error {
	switch {
	case n.iface == "":
		return errors.New("--iface is missing")
	case n.subnetFile == "":
		return errors.New("--subnet-file is missing")
	case n.renewMargin < 1 || n.renewMargin >= 24*60:
		return fmt.Errorf("--subnet-lease-renew-margin %d: want 1 to 1439 minutes", n.renewMargin)
	}
	return nil
}

// run does what flanneld's main does, in its order, except for the firewall rules
// and the health server. It ends with ctx, or when the lease is revoked.
func (n etcdNode) run(ctx context.Context) error {
	previous, previous6 := previousSubnets(n.subnetFile)
	manager, err := etcd.NewLocalManager(ctx,
		&etcd.EtcdConfig{Endpoints: strings.Split(n.endpoints, ","), Prefix: n.prefix},
		previous, previous6, n.renewMargin)
	if err != nil {
		return fmt.Errorf("etcd subnet manager: %w", err)
	}
	config, err := waitForConfig(ctx, manager)
	if err != nil {
		return nil // ctx is done
	}
	return forward(ctx, manager, config, n.iface, n.subnetFile)
}

// waitForConfig retries every second, as flanneld does. It returns the error of ctx.
func waitForConfig(ctx context.Context, manager subnet.Manager) (*subnet.Config, error) {
	for {
		config, err := manager.GetNetworkConfig(ctx)
		if err == nil {
			return config, nil
		}
		fmt.Fprintln(os.Stderr, "flannel-udp: network config:", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// previousSubnets are the IPv4 and the IPv6 subnet that the node had before, read
// from subnet.env. A subnet is empty if the file does not have it.
func previousSubnets(file string) (v4 ip.IP4Net, v6 ip.IP6Net) {
	f, err := os.Open(file)
	if err != nil {
		return v4, v6
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		_, prefix, err := net.ParseCIDR(value)
		switch {
		case err != nil:
		case key == "FLANNEL_SUBNET":
			v4 = ip.FromIPNet(prefix)
		case key == "FLANNEL_IPV6_SUBNET":
			v6 = ip.FromIP6Net(prefix)
		}
	}
	return v4, v6
}
