package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// moving is a host whose peer is reached by two ways.
type moving struct {
	table *table
	ways  [2][]Route // of IPv4 and IPv6 each: through VXLAN, and plain
}

// hosts makes two hosts that reach each other's pods through flannel.1, with a
// table each that runs.
func hosts(t *testing.T) (*netlab.Topology, []*moving) {
	topo := netlabtest.New(t, netlab.Options{})
	if err := topo.AddVXLAN(); err != nil {
		t.Fatal(err)
	}
	var all []*moving
	for i, h := range topo.Hosts {
		peer := topo.Hosts[1-i]
		m := new(moving)
		for j, subnet := range []netip.Prefix{peer.Subnet, peer.Subnet6} {
			public := []netip.Addr{peer.Addr, peer.Addr6}[j]
			m.ways[0] = append(m.ways[0], Route{Dst: subnet, Via: subnet.Addr(), Dev: "flannel.1", OnLink: true})
			m.ways[1] = append(m.ways[1], Route{Dst: subnet, Via: public, Dev: "eth0"})
		}
		if err := h.NS.Do(func() (err error) {
			k, err := Open(Config{
				Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:10:5::/48")},
				Subnets:  []netip.Prefix{h.Subnet, h.Subnet6},
				Logger:   slog.New(slog.DiscardHandler),
			})
			m.table = &table{k}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.table.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := errors.Join(<-done, m.table.Close()); err != nil {
				t.Error(err)
			}
		})
		all = append(all, m)
	}
	return topo, all
}

// TestPeerMovesWithoutALostPacket: both hosts change the way to the other again
// and again, while their pods talk in both families.
func TestPeerMovesWithoutALostPacket(t *testing.T) {
	topo, all := hosts(t)
	var answered [2]atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	a, b := topo.Hosts[0].Pods[0], topo.Hosts[1].Pods[0]
	for i, to := range []netip.Addr{b.Addr, b.Addr6} {
		server, err := b.NS.ListenPacket("udp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		go echo(server)
		client, err := a.NS.Dial(ctx, "udp", netip.AddrPortFrom(to, 7).String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		talking.Go(func() {
			if err := talk(ctx, client, &answered[i]); err != nil {
				t.Errorf("to %s: %v", to, err)
				cancel()
			}
		})
	}
	const moves = 200
	for i := range moves {
		for _, m := range all {
			if err := m.table.Set(m.ways[(i+1)%2]); err != nil {
				t.Fatal(err)
			}
		}
		// Each way is used.
		for j := range answered {
			before := answered[j].Load()
			testkit.Eventually(t, "requests are answered", func() bool { return answered[j].Load() >= before+3 || ctx.Err() != nil })
		}
	}
	cancel()
	talking.Wait()
	t.Logf("%d moves of both hosts; requests answered: IPv4 %d, IPv6 %d", moves, answered[0].Load(), answered[1].Load())
	for _, h := range topo.Hosts {
		if n := packets(t, h, "flannel.1"); n < moves {
			t.Errorf("%s: %d packets left through flannel.1", h.NS, n)
		}
	}
}

func packets(t *testing.T, h *netlab.Host, name string) uint64 {
	t.Helper()
	link, err := h.NS.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.(*netlink.Vxlan).Statistics.TxPackets
}

// echo answers what it receives until the socket is closed.
func echo(c net.PacketConn) {
	b := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(b[:n], from)
	}
}

// talk asks again as soon as it is answered, until ctx is done. It fails if an
// answer does not come.
func talk(ctx context.Context, c net.Conn, answered *atomic.Int64) error {
	b := make([]byte, 64)
	for i := 0; ctx.Err() == nil; i++ {
		asked := fmt.Sprint(i)
		if _, err := c.Write([]byte(asked)); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(testkit.Patience / 2)); err != nil {
			return err
		}
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != asked {
			return fmt.Errorf("request %d, answer %q: %w", i, b[:n], err)
		}
		answered.Add(1)
	}
	return nil
}
