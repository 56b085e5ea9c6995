//go:build amd64

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// Nodes are changed one by one, from stock flannel to twilld and back, while a
// TCP connection stays in use.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//
//	                 └── etcd
func TestConnectionOutlivesARollingSwapFromStockFlannelAndBack(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	l := idleEtcdLab(t, 2, "--partial-checksums=off")
	// The subnets that the pods have are those of an earlier run.
	files := []string{filepath.Join(scratchDir(t), "subnet.env"), filepath.Join(scratchDir(t), "subnet.env")}
	stock := make([]*stockNode, 2)
	for i, h := range l.Hosts[:2] {
		env := fmt.Sprintf("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=%s/24\n", h.Gateway())
		testkit.Must(t, os.WriteFile(files[i], []byte(env), 0o644))
		stock[i] = l.startStockNode(t, i, files[i])
	}
	testkit.Must(t, l.SetPodMTU(1472))
	golden := l.entries()
	for i := range stock {
		if golden[l.key(i)] == "" {
			t.Fatalf("stock flannel did not acquire the subnet of subnet.env: %v", golden)
		}
	}
	stockEnv := []string{textOf(t, files[0]), textOf(t, files[1])}
	same := func(after string) {
		t.Helper()
		if got := l.entries(); !maps.Equal(got, golden) {
			t.Errorf("%s etcd has\n%v\nwith stock flannel it had\n%v", after, got, golden)
		}
	}
	stream := l.startStream(t)
	stream.passes(t, "between nodes of stock flannel")
	for i, d := range l.daemons {
		stock[i].stop(t)
		d.start()
		d.waitReady()
		stream.passes(t, "with twilld on host "+l.Hosts[i].Letter)
		same("with twilld on host " + l.Hosts[i].Letter)
		if got := d.env(); got != stockEnv[i] {
			t.Errorf("subnet.env of twilld\n%s\nof stock flannel\n%s", got, stockEnv[i])
		}
	}
	for i, d := range l.daemons {
		d.stop(syscall.SIGTERM)
		stock[i] = l.startStockNode(t, i, files[i])
		stream.passes(t, "with stock flannel again on host "+l.Hosts[i].Letter)
		same("with stock flannel again on host " + l.Hosts[i].Letter)
	}
	stream.stop(t)
	l.checkHistory()
}

// startStockNode runs stock flannel on host number i until it is stopped or the
// test ends, and waits until it is ready.
func (l *etcdLab) startStockNode(t *testing.T, i int, subnetFile string) *stockNode {
	t.Helper()
	n := startStockNode(t, l.Hosts[i].NS, l.endpoint(), subnetFile)
	if n.mtu != 1472 {
		t.Fatalf("stock flannel in %s has an MTU of %d, want 1472", l.Hosts[i].NS, n.mtu)
	}
	return n
}

// stockNode is a stock flannel whose lease is in etcd or in Kubernetes.
type stockNode struct {
	mtu  int // of its pods
	cmd  *netlab.Cmd
	done chan struct{} // closed when the process has ended
}

// startStockNode runs stock flannel in ns until it is stopped or the test ends,
// and waits until it is ready.
func startStockNode(t testing.TB, ns *netlab.Namespace, endpoint, subnetFile string) *stockNode {
	t.Helper()
	return runStockNode(t, ns, nil, subnetFile, "--etcd-endpoints="+endpoint, noRules)
}

// runStockNode is startStockNode with further variables and flags, which say where
// its lease is.
func runStockNode(t testing.TB, ns *netlab.Namespace, env []string, subnetFile string, flags ...string) *stockNode {
	t.Helper()
	n := &stockNode{
		cmd: ns.Command(context.Background(), bin("flanneld"), append(flags,
			"--iface="+netlab.UnderlayLink, "--subnet-file="+subnetFile)...),
		done: make(chan struct{}),
	}
	n.cmd.Env = append(os.Environ(), env...)
	log := new(testkit.Log)
	n.cmd.Stderr = log
	testkit.Must(t, n.cmd.Start())
	go func() {
		_ = n.cmd.Wait()
		close(n.done)
	}()
	t.Cleanup(func() {
		n.kill()
		if t.Failed() {
			t.Logf("log of stock flannel in %s:\n%s", ns, log)
		}
	})
	testkit.Eventually(t, "stock flannel in "+ns.String()+" is ready", func() bool {
		select {
		case <-n.done:
			t.Fatalf("stock flannel in %s exited: %s", ns, n.cmd.ProcessState)
		default:
		}
		return strings.Contains(log.String(), "flannel is ready")
	})
	_, mtu, _ := strings.Cut(textOf(t, subnetFile), "FLANNEL_MTU=")
	if _, err := fmt.Sscan(mtu, &n.mtu); err != nil {
		t.Fatalf("MTU of stock flannel in %s: %v", ns, err)
	}
	return n
}

// kill ends the process at once, unless it has ended.
func (n *stockNode) kill() {
	_ = n.cmd.Process.Kill() // an error means that it has ended
	<-n.done
}

// stop ends the process as a service manager would: stock flannel does not always end
// when it is asked to.
func (n *stockNode) stop(t testing.TB) {
	t.Helper()
	testkit.Must(t, n.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-n.done:
	case <-time.After(10 * time.Second):
		n.kill()
	}
}
