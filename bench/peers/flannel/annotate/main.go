// Command annotate annotates a Kubernetes node as stock flannel does when it
// starts: it runs flannel's own subnet manager once, and exits. NODE_NAME names the node.
//
//	annotate KUBECONFIG NET-CONF ATTRS
//
// ATTRS are flannel's LeaseAttrs as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "annotate:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("want KUBECONFIG NET-CONF ATTRS, got %d arguments", len(args))
	}
	var attrs lease.LeaseAttrs
	if err := json.Unmarshal([]byte(args[2]), &attrs); err != nil {
		return fmt.Errorf("decode attributes: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	manager, err := kube.NewSubnetManager(ctx, "", args[0], "flannel.alpha.coreos.com", args[1], false)
	if err != nil {
		return err
	}
	_, err = manager.AcquireLease(ctx, &attrs)
	return err
}
