package vxlan

import (
	"errors"
	"github.com/twillnet/twill/internal/host/keep"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// links are the names of all interfaces.
func (h host) links() string {
	h.Helper()
	list, err := h.nl.LinkList()
	h.must(err)
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}

func TestProbeLeavesNothing(t *testing.T) {
	inside(t, func(h host) {
		before := h.links()
		h.must(Probe(), Probe())
		if after := h.links(); after != before {
			t.Errorf("interfaces before %s, after %s", before, after)
		}
		// Beside devices that are in use, among them one of the VNI and port
		// of the probe.
		h.open(h.config4())
		h.must(h.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan9"}, VxlanId: maxVNI, Port: probePort}))
		before = h.links()
		h.must(Probe())
		if after := h.links(); after != before {
			t.Errorf("interfaces before %s, after %s", before, after)
		}
	})
}

func TestProbeRemovesWhatAKilledOneHasLeft(t *testing.T) {
	inside(t, func(h host) {
		before := h.links()
		h.must(h.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: probeName}, VxlanId: maxVNI, Port: probePort}))
		h.must(Probe())
		if after := h.links(); after != before {
			t.Errorf("interfaces before %s, after %s", before, after)
		}
	})
}

func TestProbesAtTheSameTimeDoNotDisturbEachOther(t *testing.T) {
	inside(t, func(h host) {
		before := h.links()
		var all sync.WaitGroup
		for range 3 {
			all.Go(func() {
				for range 10 {
					if err := h.ns.Do(Probe); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if after := h.links(); after != before {
			t.Errorf("interfaces before %s, after %s", before, after)
		}
	})
}

func TestProbeLeavesAForeignDeviceAlone(t *testing.T) {
	inside(t, func(h host) {
		h.must(h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: probeName}}))
		if err := Probe(); err == nil || !strings.Contains(err.Error(), "interface twill-probe exists and is not twilld's (bridge): delete it (ip link delete twill-probe)") {
			t.Errorf("%v", err)
		}
		h.link(probeName)
	})
}

// TestProbeSaysThatThePrivilegeIsMissing: the thread, which ends with the test,
// gives CAP_NET_ADMIN away.
func TestProbeSaysThatThePrivilegeIsMissing(t *testing.T) {
	inside(t, func(h host) {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		h.must(unix.Capget(&header, &caps[0]))
		caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		h.must(unix.Capset(&header, &caps[0]))
		before := h.links()
		err := Probe()
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN is missing: grant it to the process or container") {
			t.Errorf("%v", err)
		}
		if _, err := openKept(h.config4()); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN is missing") {
			t.Errorf("Open: %v", err)
		}
		if after := h.links(); after != before {
			t.Errorf("interfaces before %s, after %s", before, after)
		}
	})
}

func TestErrorOfAKernelWithoutVXLANSaysWhatToDo(t *testing.T) {
	for _, tt := range []struct {
		err    error
		remedy string
	}{
		{unix.EOPNOTSUPP, "; this kernel has no VXLAN: load the module vxlan (modprobe vxlan), or use the udp backend"},
		{unix.EAFNOSUPPORT, "; this kernel does not support VXLAN over IPv6"},
		{unix.ENOMEM, ""},
	} {
		if got := keep.VXLANRemedy(tt.err); got != tt.remedy {
			t.Errorf("of %v %q, want %q", tt.err, got, tt.remedy)
		}
	}
}
