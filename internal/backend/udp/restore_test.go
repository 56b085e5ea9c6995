package udp

import (
	"context"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// TestQueueLengthOfAnAdministratorStays: while another setting is put back.
func TestQueueLengthOfAnAdministratorStays(t *testing.T) {
	inside(t, func(ns *netlab.Namespace) {
		b, end, err := openKept(config())
		testkit.Must(t, err)
		defer end()
		link := func() netlink.Link {
			l, err := netlink.LinkByName("flannel0")
			testkit.Must(t, err)
			return l
		}
		testkit.Must(t, netlink.LinkSetTxQLen(link(), 700), netlink.LinkSetMTU(link(), 1300),
			b.cfg.Keeper.Ensure(b.Link()))
		if a := link().Attrs(); a.TxQLen != 700 || a.MTU != 1472 {
			t.Errorf("txqueuelen %d, MTU %d; want 700, 1472", a.TxQLen, a.MTU)
		}
	})
}

// TestWhatStopsTrafficOnTheDeviceIsUndone: without a queue, or without a carrier,
// the kernel drops all that pods send, and says nothing.
func TestWhatStopsTrafficOnTheDeviceIsUndone(t *testing.T) {
	ip := func(args ...string) func(*netlab.Namespace) error {
		return func(ns *netlab.Namespace) error {
			return ns.Command(t.Context(), "ip", append([]string{"link", "set", "flannel0"}, args...)...).Run()
		}
	}
	for _, tt := range []struct {
		name  string
		take  func(ns *netlab.Namespace) error
		right func(a *netlink.LinkAttrs) bool
	}{
		{"txqueuelen 0", ip("txqueuelen", "0"),
			func(a *netlink.LinkAttrs) bool { return a.TxQLen == 1000 }},
		{"another name", ip("name", "other0"),
			func(a *netlink.LinkAttrs) bool { return a.Name == "flannel0" }},
		{"carrier off", ip("carrier", "off"),
			func(a *netlink.LinkAttrs) bool { return a.OperState != netlink.OperDown }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(ns *netlab.Namespace) {
				cfg := config()
				b, end, err := openKept(cfg)
				testkit.Must(t, err)
				defer end()
				if !b.cfg.Keeper.Set(keep.State{Links: []keep.Link{b.Link()}}) {
					t.Fatal("not all was done")
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error, 1)
				go func() { done <- b.cfg.Keeper.Run(ctx) }()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}()
				dev, err := netlink.LinkByName("flannel0")
				testkit.Must(t, err)
				index := dev.Attrs().Index
				attrs := func() *netlink.LinkAttrs {
					dev, err := netlink.LinkByIndex(index)
					testkit.Must(t, err)
					return dev.Attrs()
				}
				testkit.Must(t, tt.take(ns))
				testkit.Eventually(t, "it is put back", func() bool { return tt.right(attrs()) })
			})
		})
	}
}
