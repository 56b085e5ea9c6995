package vxlan

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

func TestFullTableOfNeighboursIsToldWithItsRemedy(t *testing.T) {
	var w writes
	w.replaceNeigh(netip.MustParseAddr("10.5.2.0"), nlbatch.MAC{2})
	w.replaceNeigh(netip.MustParseAddr("fd00::"), nlbatch.MAC{2})
	w.replaceFDB(nlbatch.MAC{2}, local4)
	w.deleteNeigh(netip.MustParseAddr("10.5.2.0"), nlbatch.MAC{2})
	for i, want := range []string{"net.ipv4.neigh.default.gc_thresh3", "net.ipv6.neigh.default.gc_thresh3", "", ""} {
		if got := w.changes[i].remedy(unix.ENOBUFS); !strings.HasSuffix(got, want) || want == "" && got != "" {
			t.Errorf("%s: %q, want %q", w.changes[i].what, got, want)
		}
		if got := w.changes[i].remedy(unix.ENOSPC); got != "" {
			t.Errorf("%s: %q for another error", w.changes[i].what, got)
		}
	}
}

// TestManyErrorsAreToldBriefly: a batch may have thousands.
func TestManyErrorsAreToldBriefly(t *testing.T) {
	var w writes
	for range 1000 {
		at := w.replaceFDB(nlbatch.MAC{2}, local4)
		w.changes[at].err = unix.ENOSPC
	}
	err := w.err("flannel.1")
	if err == nil || len(err.Error()) > 500 || !strings.Contains(err.Error(), "and 995 more") || !strings.HasPrefix(err.Error(), "interface flannel.1: ") {
		t.Errorf("%v", err)
	}
	if err := new(writes).err("flannel.1"); err != nil {
		t.Errorf("of no change: %v", err)
	}
}
