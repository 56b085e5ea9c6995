package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
)

const tourIntro = `One packet from pod to pod, with the tables and bytes of this machine.

  pod-a ──── cni0, host a ──────── host b, cni0 ──── pod-b
  %-10s %-20s  %-17s %s

Host a has the pods of %s, host b those of %s. A real twilld runs on
both. Pod-a sends one ICMP echo request (ping) of %d bytes, which is captured at
each interface on its path.
`

// tourSize is the size of the echo request, in bytes with its IP header.
const tourSize = 48

// tour is the state of Tour.
type tour struct {
	ctx   context.Context
	out   io.Writer
	pause func() error
	conn  *Connection
	step  int
	seen  []sighting
}

// Tour follows one packet from pod to pod through the udp backend, and another through
// vxlan. It explains each step on out, with the tables and bytes that it finds. pause is
// called after each step. Tour leaves nothing behind and needs root.
func Tour(ctx context.Context, bin Binaries, out io.Writer, pause func() error) error {
	if err := needRoot("the tour"); err != nil {
		return err
	}
	for i, chapter := range []struct {
		path    string
		explain func(*tour) error
	}{{"twill", (*tour).udp}, {"twill-vxlan", (*tour).vxlan}} {
		p, _ := find(Paths, chapter.path, Path.name)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		c, err := p.Up(ctx, netlab.Options{Wire: netlab.MTU}, bin)
		if err != nil {
			return err
		}
		t := &tour{ctx: ctx, out: out, pause: pause, conn: c}
		if i == 0 {
			a, b := c.topo.Hosts[0], c.topo.Hosts[1]
			fmt.Fprintf(out, tourIntro, c.Client.Addr, a.Addr, b.Addr, c.Server.Addr, a.Subnet, b.Subnet, tourSize)
		}
		if err := errors.Join(chapter.explain(t), c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// chapter prints the heading of a backend and sends the packet.
func (t *tour) chapter(title, device string) (err error) {
	fmt.Fprintf(t.out, "\n# %s\n", title)
	a, b := t.conn.topo.Hosts[0].NS, t.conn.topo.Hosts[1].NS
	t.seen, err = follow(t.ctx, t.conn, []place{
		{t.conn.Client.NS, "eth0"}, {a, device}, {a, netlab.UnderlayLink},
		{b, netlab.UnderlayLink}, {b, device}, {t.conn.Server.NS, "eth0"},
	})
	return err
}

// explain prints a step: its title, a paragraph, and what was found. It returns the first
// error among the findings.
func (t *tour) explain(title, text string, found ...finding) error {
	if t.step > 0 {
		if err := t.pause(); err != nil {
			return err
		}
	}
	t.step++
	fmt.Fprintf(t.out, "\n%d. %s\n\n%s\n", t.step, title, text)
	for _, f := range found {
		if f.err != nil {
			return f.err
		}
		fmt.Fprintf(t.out, "\n%s", f.text)
	}
	return nil
}

// finding is a table or packet as text.
type finding struct {
	text string
	err  error
}

// udp explains the path through the udp backend.
func (t *tour) udp() error {
	if err := t.chapter("By the udp backend: a program carries the packet", tunLink); err != nil {
		return err
	}
	a, b := t.conn.topo.Hosts[0], t.conn.topo.Hosts[1]
	return first(
		func() error {
			return t.explain("Pod-a hands the packet to its host",
				"A pod has one interface and one way out: the address of the bridge on its host.",
				routesOf(t.conn.Client.NS), t.packetAt(0))
		},
		func() error {
			return t.explain("Host a has a route to all other pods",
				fmt.Sprintf("%s is the network of the cluster. The host's own pods are on cni0; the rest of\nthe network is behind %s, a TUN device: twilld reads what the kernel sends to it.\nThe packet has lost its Ethernet header, and the host, as a router, has decremented its\nTTL.", netlab.Network, tunLink),
				routesOf(a.NS), t.packetAt(1))
		},
		func() error {
			return t.explain("twilld looks up the node with this address",
				"Each node's lease says which subnet is behind which address. twilld has read all\nleases and keeps a table of them, in which the longest prefix wins:",
				t.peers(a))
		},
		func() error {
			return t.explain("The packet travels as the payload of a datagram",
				fmt.Sprintf("twilld sends it through a UDP socket to port 8285 of host b. The datagram contains\nnothing but the packet, so stock flannel can read it too. This adds 20 bytes of IP and 8\nof UDP: of an MTU of 1500 there are %d left for packets of pods.", t.conn.MTU),
				t.packetAt(2))
		},
		func() error {
			return t.explain("Host b unpacks the datagram",
				fmt.Sprintf("twilld on host b checks that the sender, %s, holds the lease of the packet's\nsource, and that the destination is one of its own pods. It writes the packet, without\nthe 28 bytes, to its own %s, and the kernel forwards it from there to the bridge.", a.Addr, tunLink),
				t.packetAt(4), routesOf(b.NS))
		},
		func() error {
			return t.explain("Pod-b receives what pod-a sent",
				"Two routers have decremented the TTL, and the checksum of the IP header has changed with\nit. Everything else is as pod-a sent it. The answer takes the same path back.",
				t.packetAt(5))
		},
	)
}

// vxlan explains the path through the vxlan backend.
func (t *tour) vxlan() error {
	const device = "flannel.1"
	if err := t.chapter("By the vxlan backend: the kernel carries the packet", device); err != nil {
		return err
	}
	a, b := t.conn.topo.Hosts[0], t.conn.topo.Hosts[1]
	return first(
		func() error {
			return t.explain("Host a has a route to each other node",
				fmt.Sprintf("Here twilld carries no packets. It configures the kernel from the same leases: for each\nnode a route through %s, whose gateway is the first address of the node's subnet.", device),
				routesOf(a.NS))
		},
		func() error {
			return t.explain("The kernel looks up the gateway",
				"The kernel sends no ARP requests for this gateway: twilld has added the Ethernet address\nof the other node's device as a permanent neighbour. In the forwarding database (FDB) of\nthe VXLAN device it has added the host that has this Ethernet address.",
				neighboursOf(a.NS, device))
		},
		func() error {
			return t.explain("The packet gets an Ethernet header",
				fmt.Sprintf("On %s it is a frame from one node's device to the other's.", device),
				t.packetAt(1))
		},
		func() error {
			return t.explain("The frame travels in a datagram",
				fmt.Sprintf("The datagram goes to port 8472, which Linux used before VXLAN had a port of its own\n(4789). The VXLAN header carries the number of the network (VNI 1). With the Ethernet\nheader, this adds 50 bytes instead of 28, and %d are left for packets of pods.", t.conn.MTU),
				t.packetAt(2))
		},
		func() error {
			return t.explain("Host b unpacks it in the kernel",
				fmt.Sprintf("The kernel of host b removes all headers up to the frame, recognizes its own Ethernet\naddress, and routes the packet to %s.", b.Subnet),
				t.packetAt(4), t.packetAt(5))
		},
		func() error {
			return t.explain("What twilld does meanwhile",
				"It follows the leases, and restores what other programs remove. If it stops, these\nentries stay, and the pods remain connected.",
				t.peers(a))
		},
	)
}

// first calls the steps until one fails.
func first(steps ...func() error) error {
	for _, s := range steps {
		if err := s(); err != nil {
			return err
		}
	}
	return nil
}

// place is an interface at which the packet is captured.
type place struct {
	ns   *netlab.Namespace
	link string
}

// sighting is the packet as captured at a place.
type sighting struct {
	place
	frame    []byte // from the link header on
	ethernet bool   // there is an Ethernet header; a TUN device has none
}

// follow sends an echo request from pod to pod and returns it as captured at the places.
func follow(ctx context.Context, c *Connection, places []place) (seen []sighting, err error) {
	var taps []*tap
	defer func() {
		for _, t := range taps {
			t.close()
		}
	}()
	for _, p := range places {
		t, err := newTap(p)
		if err != nil {
			return nil, err
		}
		taps = append(taps, t)
	}
	fd, err := pingSocket(c.Client)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	// The first requests may be lost to neighbour discovery.
	for seq := range uint16(echoes) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		if _, err = echo(fd, &unix.SockaddrInet4{Addr: c.Server.Addr.As4()}, tourSize, seq); err != nil {
			continue
		}
		for _, t := range taps {
			s, err := t.find(c.Client.Addr, c.Server.Addr, seq)
			if err != nil {
				return nil, err
			}
			seen = append(seen, s)
		}
		return seen, nil
	}
	return nil, fmt.Errorf("ping %s from %s: %w", c.Server.Addr, c.Client.NS, err)
}

// packetAt describes the packet at place number i of the chapter.
func (t *tour) packetAt(i int) finding {
	s := t.seen[i]
	text, err := dissect(s.frame, s.ethernet)
	if err != nil {
		return finding{err: fmt.Errorf("%s, %s: %w", s.ns, s.link, err)}
	}
	return finding{text: fmt.Sprintf("  %s, %s: %d bytes\n%s", s.ns, s.link, len(s.frame), text)}
}

// isRequest reports whether an IPv4 packet is the echo request with the number seq.
func isRequest(packet []byte, from, to netip.Addr, seq uint16) bool {
	src, dst, protocol, message, ok := parseIPv4(packet)
	return ok && src == from && dst == to && protocol == unix.IPPROTO_ICMP && len(message) >= icmpHeaderLen &&
		message[0] == byte(ipv4.ICMPTypeEcho) && be16(message[6:]) == seq
}
