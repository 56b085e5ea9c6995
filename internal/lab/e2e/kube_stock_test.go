//go:build amd64

package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// Nodes of Kubernetes are changed one by one, from stock flannel to twilld and back,
// under a TCP connection that goes on all the time. Stock's part is its own subnet
// manager and backend, without its firewall rules and health server.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//
//	                 └── kube-apiserver
func TestKubeConnectionOutlivesARollingSwapFromStockFlannelAndBack(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	for _, backend := range []string{"vxlan", "host-gw", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newKubeLab(t, 2, fmt.Sprintf(`{"Type": %q}`, backend))
			dir := scratchDir(t)
			kubeconfig := l.Kubeconfig(kubetest.FlannelToken)
			stock := make([]*stockNode, 2)
			start := func(i int) {
				t.Helper()
				stock[i] = runStockNode(t, l.Hosts[i].NS, []string{"NODE_NAME=" + l.node(i)}, "--kube-subnet-mgr", "--kubeconfig-file="+kubeconfig,
					"--net-config-path="+l.netConf, "--subnet-file="+filepath.Join(dir, l.node(i)))
			}
			golden := make([]map[string]string, 2)
			for i := range stock {
				l.Annotate(l.node(i), map[string]any{"example.com/any": ""}) // stock panics at a node without annotations
				start(i)
				golden[i] = l.annotations(i)
			}
			testkit.Must(t, l.SetPodMTU(stock[0].mtu))
			// What stock has written stays, and what it cannot read is elsewhere.
			same := func(i int, after string) {
				t.Helper()
				got := l.annotations(i)
				delete(got, "twill")
				if !maps.Equal(got, golden[i]) {
					t.Errorf("%s node %s is annotated with\n%v\nstock had written\n%v", after, l.Hosts[i].Letter, got, golden[i])
				}
			}
			stream := startStream(t, l.pod(0), l.pod(1))
			stream.passes(t, "between nodes of stock flannel")
			for i, d := range l.daemons {
				stock[i].stop(t)
				d.start()
				d.waitReady()
				l.sees(i, 2)
				stream.passes(t, "with twilld on host "+l.Hosts[i].Letter)
				same(i, "after twilld")
				if mtu := d.podMTU(); mtu != stock[i].mtu {
					t.Errorf("the MTU is %d, stock's %d", mtu, stock[i].mtu)
				}
			}
			for i, d := range l.daemons {
				d.stop(syscall.SIGTERM)
				start(i)
				stream.passes(t, "with stock flannel again on host "+l.Hosts[i].Letter)
				same(i, "after stock")
			}
			stream.stop(t)
		})
	}
}

// annotations are what node number i is annotated with of flannel's.
func (l *kubeLab) annotations(i int) map[string]string {
	return l.Node(l.node(i)).OurAnnotations("flannel.alpha.coreos.com/")
}
