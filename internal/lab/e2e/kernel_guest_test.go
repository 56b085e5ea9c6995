package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// Kernels before TCX have clsact filters, and those without GRO on veth have no kernel
// path, though their leases in the file announce it.
//
// pod-a ── host a, this kernel ────────── guest, another ── pod-b
func TestKernelPathWithOtherKernels(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		kernel
		why string
	}{
		{linux61, "granted: BPF programs attached by clsact"},
		{linux61.of("arm64"), "granted: BPF programs attached by clsact"},
		{kernel{version: "6.12", arch: linux61.arch}, "granted: BPF programs attached by TCX"},
		{kernel{version: "5.10", arch: linux61.arch}, "refused: self-test: it needs Linux 5.13"},
	} {
		t.Run("Linux "+k.version+" on "+k.arch, func(t *testing.T) {
			t.Parallel()
			l := newKernelLab(t, labOptions{engine: kernelEngine})
			n := bootNode(t, k.kernel, l.Hosts[1], map[string]string{"/etc/twill/leases.json": l.leaseFile}, "tun", "veth", "sch_ingress", "cls_bpf")
			l.daemons[0].start()
			l.daemons[0].waitReady()
			n.start("--lease-file=/etc/twill/leases.json", "--kernel-path=auto")
			testkit.Must(t, l.SetPodMTU(l.daemons[0].status().Dataplane.MTU()))
			granted := strings.HasPrefix(k.why, "granted")
			if o := offloadNamed(n.status(), "kernel-path"); o.InForce != granted || !strings.HasPrefix(o.Why, k.why) {
				t.Errorf("status: %+v, want %q", o, k.why)
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				if !granted {
					if err := ping(l.pod(0), addr, 1472); err != nil {
						t.Error(err)
					}
					return
				}
				exchangeAll(t, l.pod(0), l.pod(1), addr)
				exchangeAll(t, l.pod(1), l.pod(0), ofFamily(l.pod(0), addr))
			})
			n.eventually("the kernel path has carried packets, if there is one", func() bool {
				tx, rx := kernelPackets(n.status())
				return granted == (tx > 0 && rx > 0)
			})
		})
	}
}
