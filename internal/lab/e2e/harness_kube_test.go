package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// kubeLab is a lab whose last host runs a Kubernetes control plane in the place of a
// daemon. The nodes are called node-a, node-b, …, and have the subnets of their pods
// as podCIDR.
type kubeLab struct {
	*lab
	*kubetest.Cluster
	netConf string // path of the network configuration
}

// newKubeLab starts a control plane and prepares daemons for n nodes, of which it
// starts none. backend is the Backend of the network configuration.
func newKubeLab(t *testing.T, n int, backend string, flags ...string) *kubeLab {
	t.Helper()
	lab := newLab(t, labOptions{Options: netlab.Options{Hosts: n + 1}, nodes: n, idle: true, flags: flags})
	host := lab.Hosts[n]
	l := &kubeLab{lab: lab, netConf: filepath.Join(t.TempDir(), "net-conf.json")}
	l.Cluster = kubetest.Start(t, kubetest.Options{
		Host: lab.underlay(n).String(),
		Command: func(name string, args ...string) (*exec.Cmd, func() error) {
			c := host.NS.Command(context.Background(), name, args...)
			return c.Cmd, c.Start
		},
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return host.NS.Dial(ctx, network, addr)
		},
	})
	l.configure(`{"Network": "10.5.0.0/16", "Backend": ` + backend + `}`)
	for i, d := range l.daemons {
		l.AddNode(l.node(i), l.Hosts[i].Subnet.String())
		d.readKube(l.node(i), l.Kubeconfig(kubetest.FlannelToken), l.netConf)
	}
	return l
}

// configure writes the network configuration, as the kubelet replaces a ConfigMap's
// file: in one step.
func (l *kubeLab) configure(text string) {
	l.t.Helper()
	testkit.Must(l.t, os.WriteFile(l.netConf+".new", []byte(text), 0o600), os.Rename(l.netConf+".new", l.netConf))
}

// readKube makes a daemon that is not running yet get its lease from Kubernetes.
func (d *daemon) readKube(node, kubeconfig, netConf string) {
	d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--lease-file=") })
	d.args = append(d.args, "--kube-subnet-mgr", "--kubeconfig-file="+kubeconfig, "--net-config-path="+netConf)
	d.wrap = append([]string{"env", "NODE_NAME=" + node}, d.wrap...)
}

// node is the name of host number i in the cluster.
func (l *kubeLab) node(i int) string { return "node-" + l.Hosts[i].Letter }

// sees waits until host number i has n leases, its own included.
func (l *kubeLab) sees(i, n int) {
	l.t.Helper()
	testkit.Eventually(l.t, fmt.Sprintf("host %s has %d leases", l.Hosts[i].Letter, n), func() bool {
		doc := l.daemons[i].tryStatus()
		return doc != nil && doc.Source.Leases == n
	})
}

// pings checks that the pods of hosts number i and j reach each other with packets of
// size bytes.
func (l *kubeLab) pings(i, j, size int) {
	l.t.Helper()
	testkit.Must(l.t, ping(l.pod(i), l.pod(j).Addr, size), ping(l.pod(j), l.pod(i).Addr, size))
}

// away returns why host number i cannot use the API; empty: it can.
func (l *kubeLab) away(i int) string {
	doc := l.daemons[i].tryStatus()
	if doc == nil || doc.Source.AwaySince.IsZero() {
		return ""
	}
	return doc.Source.Away
}
