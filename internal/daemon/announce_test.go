package daemon

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
)

// What a node announces depends on devices that are there. That they could not be
// read once must not leave the peers without the announcement.
func TestAnnouncementThatCouldNotBeMadeIsMadeLater(t *testing.T) {
	h := newEtcdRig(t)
	var broken atomic.Bool
	h.daemon.macs = func(backend.Settings, backend.Choice) (dataplane.MACs, error) {
		if broken.Load() {
			return dataplane.MACs{}, errors.New("look up interface flannel.1: interrupted")
		}
		return dataplane.MACs{}, nil
	}
	h.put(t, configKey, goodConf)
	h.start(t)
	broken.Store(true)
	h.wires.become(moved(), nil)
	h.eventually(t, "not ready", func() bool { return strings.Contains(h.state.waiting(), "interrupted") })
	// What happens elsewhere does not make up for it, nor does it confirm it.
	h.put(t, "/coreos.com/network/subnets/10.5.200.0-24", `{"PublicIP":"192.0.2.2","PublicIPv6":null}`)
	h.eventually(t, "another node's lease counts", func() bool { return h.status(t).Source.Leases == 2 })
	if h.state.waiting() == "" {
		t.Error("ready, and the peers have the old address")
	}
	broken.Store(false)
	h.becomesReady(t)
	if _, value := h.lease(t); !strings.Contains(value, moved().PublicIP.String()) {
		t.Errorf("ready, and the lease is %s", value)
	}
}

// Peers send to a backend as soon as they read of it.
func TestBackendIsAnnouncedOnceItIsOpen(t *testing.T) {
	h := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	store, err := h.openStore(ctx)
	if err != nil {
		t.Fatal(err)
	}
	store.writable = true
	s := h.newSession(store)
	if err := s.join(ctx, h.wires.changes); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	h.wires.link = moved()
	before := -1
	h.daemon.open = func(n node) (dataPlane, error) {
		before = s.holder.moved
		return h.dp.open(n)
	}
	if err := s.reconcile(ctx); err != nil {
		t.Fatal(err)
	}
	if before != 0 || s.holder.moved != 1 || s.applied.attrs.PublicIP != moved().PublicIP {
		t.Errorf("%d announcements before the data plane was open, %d after that, of %s; want 0, 1, %s",
			before, s.holder.moved, s.applied.attrs.PublicIP, moved().PublicIP)
	}
}
