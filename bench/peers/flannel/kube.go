//go:build linux && amd64 && cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/flannel-io/flannel/pkg/backend"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
)

// kubeNode is the configuration of a node that has its lease in its Node object, which
// NODE_NAME names.
type kubeNode struct {
	kubeconfig string
	netConf    string
	iface      string
	subnetFile string
}

func (n kubeNode) validate() error {
	switch {
	case n.iface == "":
		return errors.New("--iface is missing")
	case n.netConf == "":
		return errors.New("--net-config-path is missing")
	case n.subnetFile == "":
		return errors.New("--subnet-file is missing")
	}
	return nil
}

func parseKubeArgs(args []string) (runner, error) {
	var n kubeNode
	fs := newFlagSet()
	fs.StringVar(&n.kubeconfig, "kubeconfig-file", "", "`file` with the API server and credentials")
	fs.StringVar(&n.netConf, "net-config-path", "", "`file` with the network configuration")
	fs.StringVar(&n.iface, "iface", "", "`interface` that reaches the other hosts")
	fs.StringVar(&n.subnetFile, "subnet-file", "/run/flannel/subnet.env", "`file` that tells subnet and MTU")
	if err := parse(fs, args); err != nil {
		return nil, err
	}
	return n, n.validate()
}

// run does what flanneld's main does with --kube-subnet-mgr, except for the firewall
// rules and the health server, and ends with ctx.
func (n kubeNode) run(ctx context.Context) error {
	manager, err := kube.NewSubnetManager(ctx, "", n.kubeconfig, "flannel.alpha.coreos.com", n.netConf, true)
	if err != nil {
		return fmt.Errorf("kube subnet manager: %w", err)
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	return forward(ctx, manager, config, n.iface, n.subnetFile)
}

// forward starts the backend that the network config names, writes subnet.env, and
// keeps the lease. It ends with ctx, or when the lease is revoked.
func forward(ctx context.Context, manager subnet.Manager, config *subnet.Config, iface, subnetFile string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	ext, err := ipmatch.LookupExtIface(iface, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return fmt.Errorf("--iface %s: %w", iface, err)
	}
	be, err := backend.NewManager(ctx, manager, ext).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait
	nw, err := be.RegisterNetwork(ctx, &wg, config)
	if err != nil {
		return fmt.Errorf("%s backend: register network: %w", config.BackendType, err)
	}
	own := nw.Lease()
	if err := manager.HandleSubnetFile(subnetFile, config, false, own.Subnet, own.IPv6Subnet, nw.MTU()); err != nil {
		return fmt.Errorf("write %s: %w", subnetFile, err)
	}
	wg.Go(func() { nw.Run(ctx) })
	fmt.Printf("ready mtu=%d\n", nw.MTU())
	// With etcd it returns when the lease is revoked, or without an error when ctx is
	// done; with Kubernetes, when it has set the node's condition.
	if err := manager.CompleteLease(ctx, own, &wg); err != nil && ctx.Err() == nil {
		return fmt.Errorf("keep lease %s: %w", own.Subnet, err)
	}
	<-ctx.Done()
	return nil
}
