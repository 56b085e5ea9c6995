package fastpath_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/tun"
)

// A node with the pods 10.5.1.0/24 and one peer. The interface of the device has
// to be up before New, with its MTU, an address and a route to 10.5.0.0/16.
func ExampleNew() {
	local := netip.MustParseAddrPort("192.0.2.1:8285")
	device, err := tun.Open(tun.Config{Name: "flannel0", Queues: 4, Logger: slog.Default()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer device.Close()

	engine, err := fastpath.New(fastpath.Config{
		Device: device, Pairs: 1, Local: local, Logger: slog.Default(),
		MTU: encap.UnderlayMTU(1500).Tunnel(local.Addr()),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer engine.Close()

	peer := fastpath.NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, netip.MustParseAddrPort("192.0.2.2:8285"))
	engine.SetPeers(fastpath.NewPeers([]netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, []*fastpath.Peer{peer}))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := engine.Run(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println(peer.Traffic.TXPackets.Load(), "packets sent to", peer.Endpoint)
}

// The switches of an engine become flags of the program.
func ExampleSwitches() {
	var s fastpath.Switches
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	for _, f := range fastpath.SwitchFlags {
		fs.Var(f.Field(&s), f.Name, f.Help)
	}
	if err := fs.Parse([]string{"--udp-gso=off", "--tun-offload=on"}); err != nil {
		panic(err)
	}
	fmt.Println(s.UDPGSO, s.TunOffload, s.UDPGRO)
	// Output:
	// off on auto
}
