//go:build !nobpf

package udp

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend/udp/kernelpath"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// TestUpdateThatTheKernelPathRefusesDoesNotEndTheBackend: user space carries the packets.
func TestUpdateThatTheKernelPathRefusesDoesNotEndTheBackend(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		cfg := config()
		cfg.KernelPath = KernelPathTC
		b := open(t, cfg)
		defer kernelpath.Remove(cfg.TunName)
		peer := peerOf(node(2), local4)
		peer.Kernel = true
		b.SetPeers([]Peer{peer})
		if s := b.Status(); !s.Peers[0].Kernel {
			t.Errorf("the kernel carries no packets: %q", s.Peers[0].KernelWhy)
		}
		freezeMaps(t)
		next := peerOf(node(3), local4)
		next.Kernel = true
		b.SetPeers([]Peer{peer, next})
		b.kernel.updated = time.Time{} // long ago
		if err := b.kernel.look(); err != nil {
			t.Errorf("the backend ends: %v", err)
		}
		if b.kernel.updated.IsZero() {
			t.Error("the update is not tried again")
		}
		for _, p := range b.Status().Peers {
			if p.Kernel || !strings.Contains(p.KernelWhy, "operation not permitted") {
				t.Errorf("%s: kernel %v, %q", p.PublicIP, p.Kernel, p.KernelWhy)
			}
		}
	})
}

// freezeMaps makes the kernel refuse all changes of the maps of the kernel path, in the
// network namespace of the calling thread.
func freezeMaps(t *testing.T) {
	t.Helper()
	var ns unix.Stat_t
	testkit.Must(t, unix.Stat("/proc/thread-self/ns/net", &ns))
	for _, name := range []string{"peers", "subnets"} {
		m, err := ebpf.LoadPinnedMap(fmt.Sprintf("/sys/fs/bpf/twill/net-%d/flannel0/%s", ns.Ino, name), nil)
		testkit.Must(t, err)
		testkit.Must(t, errors.Join(m.Freeze(), m.Close()))
	}
}
