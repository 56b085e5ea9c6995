//go:build amd64

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// stockLab is a lab with a twilld on host a and stock flannel's udp backend on
// the others. The lease file has hosts a and b.
type stockLab struct{ *lab }

func newStockLab(t *testing.T, e engine, opts netlab.Options) *stockLab {
	t.Helper()
	l := &stockLab{newLab(t, labOptions{engine: e, nodes: 1, idle: true, Options: opts})}
	replace(t, l.leaseFile, stockLeases(2))
	for i := range l.Hosts[1:] {
		l.startStock(t, i+1)
	}
	l.start()
	// Stock flannel is ready before its forwarding loop has read the peers.
	for i, h := range l.Hosts[1:] {
		testkit.Eventually(t, "stock flannel in "+h.NS.String()+" forwards", func() bool {
			return pingOnce(l.pod(i), h.Pods[0].Addr) == nil
		})
	}
	return l
}

// stockLeases is the lease file of n hosts, of which the first runs twilld and the
// others stock flannel.
func stockLeases(n int) string {
	twill, stock, _ := strings.Cut(leasesOf(n), `.11"}`)
	return twill + `.11"}` + regexp.MustCompile(`"(172\.31\.9\.\d+)"}`).ReplaceAllString(stock, `"$1", "BackendData": {}}`)
}

// buildStockUDP builds the program that runs stock flannel's udp backend, and buildStock
// stock flannel's own.
var (
	buildStockUDP = sync.OnceValue(func() error { return buildPeer("flannel-udp", ".") })
	buildStock    = sync.OnceValue(func() error { return buildPeer("flanneld", "github.com/flannel-io/flannel") })
)

// buildPeer builds a package of the module that has stock flannel.
func buildPeer(name, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin(name), pkg)
	cmd.Dir = "../../../bench/peers/flannel"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build stock flannel: %w\n%s", err, out)
	}
	return nil
}

// startStock runs stock flannel on host number i until the test ends, with all
// others as peers.
func (l *stockLab) startStock(t *testing.T, i int) {
	t.Helper()
	testkit.Must(t, buildStockUDP())
	h := l.Hosts[i]
	args := []string{
		"--iface=" + netlab.UnderlayLink, "--network=" + netlab.Network.String(),
		"--subnet=" + h.Subnet.String(), "--public-ip=" + h.Addr.String(),
	}
	for _, peer := range l.Hosts {
		if peer != h {
			args = append(args, fmt.Sprintf("--peer=%s=%s", peer.Subnet, peer.Addr))
		}
	}
	cmd := h.NS.Command(context.Background(), bin("flannel-udp"), args...)
	log := new(testkit.Log)
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	testkit.Must(t, err, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of stock flannel in %s:\n%s", h.NS, log)
		}
	})
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- strings.TrimSpace(line)
	}()
	select {
	case line := <-ready:
		if line != "ready mtu=1472" {
			t.Fatalf("stock flannel in %s prints %q, want %q", h.NS, line, "ready mtu=1472")
		}
	case <-time.After(testkit.Patience):
		t.Fatalf("stock flannel in %s does not become ready", h.NS)
	}
}
