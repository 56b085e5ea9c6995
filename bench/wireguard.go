package bench

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// wireguardPath does more work than the others, since it encrypts.
var wireguardPath = Path{"wireguard-go", "wireguard-go (encrypts)", wireguardGo, encryptingLoads}

const (
	wireguardPort = 51820
	// wireguardOverhead is what wg-quick(8) reserves: IPv6 40, UDP 8, header
	// 16 and tag 16, even if the outer packet is IPv4. The MTU on Ethernet is 1420.
	wireguardOverhead = 80
)

// wireguardGo runs wireguard-go on both hosts.
func wireguardGo(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
	program, err := peerProgram(bin, "wireguard-go")
	if err != nil {
		return nil, err
	}
	mtu, err := underlayMTU(topo)
	if err != nil {
		return nil, err
	}
	mtu -= wireguardOverhead
	keys := make(map[*netlab.Host]*ecdh.PrivateKey)
	for _, h := range topo.Hosts {
		if keys[h], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
	}
	// The device's name is also that of its socket, and /var/run is shared by
	// all hosts and all laboratories on this machine.
	id := mathrand.Uint32()
	device := func(h *netlab.Host) string { return fmt.Sprintf("wg%s%08x", h.Letter, id) }

	t := &tunnel{
		program: program,
		mtu:     mtu,
		args:    func(h *netlab.Host) []string { return []string{"--foreground", device(h)} },
		raise: func(ctx context.Context, h *netlab.Host, p *process) error {
			conn, err := dialWireGuard(ctx, p, device(h))
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := configureWireGuard(conn, wireguardConfig(h, topo.Hosts, keys)); err != nil {
				return p.failure(err)
			}
			return routeInto(h, topo.Hosts, device(h), mtu)
		},
	}
	return inTempDir(func(dir string) (*Connection, error) { return t.connect(ctx, topo, dir) })
}

// dialWireGuard connects to the socket that configures a device, as soon as
// the process listens there.
func dialWireGuard(ctx context.Context, p *process, device string) (conn net.Conn, err error) {
	err = p.waitUntil(ctx, func() bool {
		var refused error
		conn, refused = net.Dial("unix", "/var/run/wireguard/"+device+".sock")
		return refused == nil
	})
	return conn, err
}

// wireguardConfig is the configuration of a device, in the format of
// https://www.wireguard.com/xplatform/#configuration-protocol.
func wireguardConfig(self *netlab.Host, hosts []*netlab.Host, keys map[*netlab.Host]*ecdh.PrivateKey) string {
	var b strings.Builder
	fmt.Fprintf(&b, "private_key=%x\nlisten_port=%d\n", keys[self].Bytes(), wireguardPort)
	for _, peer := range hosts {
		if peer == self {
			continue
		}
		fmt.Fprintf(&b, "public_key=%x\nendpoint=%s\nallowed_ip=%s\nallowed_ip=%s\n",
			keys[peer].PublicKey().Bytes(), netip.AddrPortFrom(peer.Addr, wireguardPort), peer.Subnet, peer.Subnet6)
	}
	return b.String()
}

// configureWireGuard sends a configuration and waits until it is accepted.
func configureWireGuard(conn net.Conn, config string) error {
	if err := conn.SetDeadline(time.Now().Add(readyTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "set=1\n"+config+"\n"); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("configure: read the answer: %w", err)
	}
	if answer != "errno=0\n" {
		return fmt.Errorf("configure: refused with %q", strings.TrimSpace(answer))
	}
	return nil
}

// routeInto brings a device up and routes traffic for other hosts' pods
// through it.
func routeInto(self *netlab.Host, hosts []*netlab.Host, device string, mtu int) error {
	nl := self.NS.Netlink()
	link, err := nl.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	if err := nl.LinkSetMTU(link, mtu); err != nil {
		return fmt.Errorf("set MTU of %s to %d: %w", device, mtu, err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	for _, peer := range hosts {
		if peer == self {
			continue
		}
		for _, subnet := range []netip.Prefix{peer.Subnet, peer.Subnet6} {
			dst := &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())}
			if err := nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
				return fmt.Errorf("add route %s dev %s: %w", subnet, device, err)
			}
		}
	}
	return nil
}
