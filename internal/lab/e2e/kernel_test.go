package e2e

import (
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// kernelFlags make a daemon refuse to start without the kernel path.
var kernelFlags = []string{"--kernel-path=tc"}

// announcingKernel is what a node with the kernel path has in its lease in etcd.
var announcingKernel = json.RawMessage(`{"PartialChecksums":true,"KernelPath":true}`)

// newKernelLab builds an idle lab whose hosts run engines by their flags; those with
// the kernel path announce it. What they leave in the kernel is removed after the test.
func newKernelLab(t *testing.T, opts labOptions) *lab {
	t.Helper()
	opts.idle = true
	l := newLab(t, opts)
	leases := l.leases()[:len(l.daemons)]
	for i := range leases {
		if flags := opts.engine.flags[i%len(opts.engine.flags)]; len(flags) > 0 && flags[0] == kernelFlags[0] {
			leases[i].BackendData = announcingKernel
		}
	}
	l.setLeases(leases)
	t.Cleanup(func() { // after the daemons have been stopped
		for _, d := range l.daemons {
			if out, code := d.cleanUp(); code != 0 {
				t.Errorf("twilld --cleanup in %s: exit code %d: %s", d.ns, code, out)
			}
		}
	})
	return l
}

// kernelPackets returns what the kernel path has carried out of and into the node.
func kernelPackets(d *status.Document) (tx, rx uint64) {
	for _, s := range d.Shards {
		if s.Name == "kernel" {
			tx, rx = tx+s.TX.Packets, rx+s.RX.Packets
		}
	}
	return tx, rx
}

// Whether user space or the kernel carries them at either end, pods get the packets that were sent.
//
// pod-a ── host a ──────────── host b ── pod-b
func TestPodsTalkAcrossTheKernelPath(t *testing.T) {
	t.Parallel()
	for _, e := range []engine{
		{"kernel and kernel", [][]string{kernelFlags}},
		{"kernel and offload", [][]string{kernelFlags, offloadEngine.flags[0]}},
		{"kernel and plain", [][]string{kernelFlags, plainFlags}},
	} {
		for _, wire := range wires {
			t.Run(e.name+", "+string(wire), func(t *testing.T) {
				t.Parallel()
				l := newKernelLab(t, labOptions{engine: e, Options: netlab.Options{Wire: wire}})
				l.start()
				a, b := l.pod(0), l.pod(1)
				both := len(e.flags) == 1
				forFamilies(t, b, func(t *testing.T, addr netip.Addr) {
					exchangeAll(t, a, b, addr)
					exchangeAll(t, b, a, ofFamily(a, addr))
				})
				for _, d := range l.daemons[:len(e.flags)] {
					peer := d.status().Dataplane.Peers[0]
					if peer.Kernel != both {
						t.Errorf("%s: carried by the kernel: %v, want %v", d.ns, peer.Kernel, both)
					}
				}
				for _, d := range l.daemons {
					if both {
						testkit.Eventually(t, "the kernel path counts packets", func() bool {
							tx, rx := kernelPackets(d.status())
							return tx > 10_000 && rx > 10_000
						})
					} else if tx, rx := kernelPackets(d.status()); tx+rx > 0 {
						t.Errorf("%s: %d packets sent and %d received by the kernel path, with a peer that has none", d.ns, tx, rx)
					}
					if drops := d.status().Drops; len(drops.RX) > 0 {
						t.Errorf("%s: drops: %v", d.ns, drops)
					}
				}
			})
		}
	}
}

// exchangeAll sends everything that pods send.
func exchangeAll(t *testing.T, from, to *netlab.Pod, addr netip.Addr) {
	t.Helper()
	if err := ping(from, addr, 1472); err != nil {
		t.Errorf("ping of full size from %s: %v", from.NS, err)
	}
	if err := ping(from, addr, 1473); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("ping one byte larger from %s: %v, want EMSGSIZE", from.NS, err)
	}
	for _, flows := range []int{1, 8} {
		if err := (streams{flows: flows, up: 8 << 20, down: 4 << 20}).run(from, to, addr); err != nil {
			t.Errorf("TCP, %d flows from %s: %v", flows, from.NS, err)
		}
		d := datagrams{flows: flows, count: 160 / flows, window: 1, sizes: []int{8, 1424, 700, 4000}}
		if err := d.run(from, to, addr); err != nil {
			t.Errorf("UDP, %d flows from %s: %v", flows, from.NS, err)
		}
	}
	if err := segmented(from, to, addr); err != nil {
		t.Errorf("UDP GSO from %s: %v", from.NS, err)
	}
}
