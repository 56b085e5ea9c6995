package e2e

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
)

// announcedFile is, in a guest, a lease file that announces the kernel path for all nodes.
const announcedFile = "/etc/twill/announced.json"

// announced returns the leases of all hosts with the kernel path.
func (l *lab) announced() []leaseEntry {
	leases := l.leases()
	for i := range leases {
		leases[i].BackendData = announcingKernel
	}
	return leases
}

// expectKernelPath starts both nodes with the kernel path, which their leases announce
// from now on; that of the guest must not be running. Kernels before TCX have clsact filters, and those without GRO on veth have
// none, so that user space carries what they send and receive.
func expectKernelPath(t *testing.T, l *lab, n *guestNode, k kernel) {
	t.Helper()
	a := l.daemons[0]
	a.stop(syscall.SIGTERM)
	l.setLeases(l.announced())
	a.args = append(a.args, kernelFlags...)
	t.Cleanup(func() { // after it has been stopped
		if out, code := a.cleanUp(); code != 0 {
			t.Errorf("twilld --cleanup in %s: exit code %d: %s", a.ns, code, out)
		}
	})
	a.start()
	a.waitReady()
	n.start("--lease-file="+announcedFile, "--kernel-path=auto")

	granted := strings.HasPrefix(k.kernelPath, "granted")
	if o := offloadNamed(n.status(), "kernel-path"); o.InForce != granted || !strings.HasPrefix(o.Why, k.kernelPath) {
		t.Errorf("status: %+v, want %q", o, k.kernelPath)
	}
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		if !granted || k.arch == "arm" { // whose emulation takes minutes for all
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
}
