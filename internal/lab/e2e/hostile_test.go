package e2e

import (
	"bytes"
	"encoding/binary"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// What a host can put into a datagram for the tunnel, through real sockets and a real
// device, for each engine. See hostileKinds.
//
//	host a, a peer ──────────┐
//	                         ├── host b ── flannel0 ── cni0 ── pod-b
//	host c, without a lease ─┘
func TestNothingHostileReachesAPod(t *testing.T) {
	t.Parallel()
	kinds := hostileKinds()
	if len(kinds) < 146 {
		t.Errorf("%d kinds, want at least 146", len(kinds))
	}
	for _, u := range underlays {
		for _, e := range engines[:2] {
			if u.ipv6 && e.name == plainEngine.name {
				continue
			}
			t.Run(e.name+" "+u.name, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, labOptions{nodes: 2, engine: e, ipv6Underlay: u.ipv6, Options: netlab.Options{Hosts: 3}})
				x := &firingRange{lab: l, device: newTap(t, l.Hosts[1].NS, "flannel0"), pod: newTap(t, l.pod(1).NS, "eth0")}
				for _, k := range kinds {
					x.fire(t, k)
				}
			})
		}
	}
}

// The kernel path takes datagrams without a checksum. It must take nothing that the
// engine would not.
func TestNothingHostileReachesAPodThroughTheKernelPath(t *testing.T) {
	t.Parallel()
	l := newKernelLab(t, labOptions{nodes: 2, engine: kernelEngine, Options: netlab.Options{Hosts: 3}})
	leases := l.leases()[:2]
	for i := range leases {
		leases[i].BackendData = announcingKernel
	}
	l.setLeases(leases)
	l.start()
	x := &firingRange{lab: l, pod: newTap(t, l.pod(1).NS, "eth0"), unsummed: true}
	for _, k := range hostileKinds() {
		x.fire(t, k)
	}
	testkit.Eventually(t, "the kernel path counts what it has carried", func() bool {
		_, carried := kernelPackets(l.daemons[1].status())
		return carried > 0
	})
}

// firingRange is a lab whose host b is sent hostile datagrams.
type firingRange struct {
	*lab
	device, pod *tap // what comes out of the tunnel, nil if not in one place, and what arrives
	unsummed    bool // hostile datagrams have no checksum
	witnesses   uint16
}

// fire sends what k describes, followed by a packet that certainly passes, and
// checks what happens to it.
func (x *firingRange) fire(t *testing.T, k hostile) {
	t.Helper()
	before := x.daemons[1].status().Drops.RX
	shot := []message{{k.payload, k.train}}
	x.witnesses++
	witness := addrsOf4.good(10_000 + x.witnesses).bytes()
	if k.from == 0 {
		x.shoot(k, append(shot, message{payload: witness}))
	} else {
		x.shoot(k, shot)
	}
	drops := maps.Clone(before)
	var pass, stop [][]byte
	rest := k.payload
	for _, f := range k.fates {
		piece := rest
		if k.train > 0 {
			piece = rest[:min(k.train, len(rest))]
		}
		rest = rest[len(piece):]
		switch f {
		case passes:
			pass = append(pass, piece)
		case stoppedByKernel:
			stop = append(stop, piece)
		default:
			drops[string(f)]++
		}
	}
	var now map[string]uint64
	if !testkit.Within(testkit.Patience, func() bool {
		now = x.daemons[1].status().Drops.RX
		return maps.Equal(now, drops)
	}) {
		t.Errorf("%s: dropped %v, want %v", k.name, now, drops)
	}
	if k.from != 0 {
		x.shoot(hostile{}, []message{{payload: witness}})
	}
	x.checkDevice(t, k, witness, append(pass, stop...))
	if arrived := x.pod.until(k.name, witness); len(arrived) > len(pass) {
		t.Errorf("%s: %d packets arrived at the pod, want %d at most", k.name, len(arrived), len(pass))
	}
}

// checkDevice checks that exactly want came out of the tunnel, up to witness.
func (x *firingRange) checkDevice(t *testing.T, k hostile, witness []byte, want [][]byte) {
	t.Helper()
	if x.device == nil {
		return
	}
	came := x.device.until(k.name, witness)
	if len(came) != len(want) {
		t.Errorf("%s: %d packets came out of the tunnel, want %d", k.name, len(came), len(want))
	} else {
		for i := range want {
			if !bytes.Equal(came[i], want[i]) {
				t.Errorf("%s: packet %d came out of the tunnel as\n% x, want\n% x", k.name, i, came[i], want[i])
			}
		}
	}
}

// message is a datagram, or a train of them.
type message struct {
	payload []byte
	train   int
}

// shoot sends messages as k says, from one socket, so that they arrive in order.
func (x *firingRange) shoot(k hostile, messages []message) {
	x.t.Helper()
	conn, err := listenUDP(x.Hosts[k.from].NS, netip.AddrPortFrom(x.underlay(k.from), 0))
	if err != nil {
		x.t.Fatal(err)
	}
	defer conn.Close()
	level, opt := unix.IPPROTO_IP, unix.IP_TOS
	if x.ipv6Underlay {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	for i, m := range messages {
		tos := k.tos
		if i > 0 { // the witness
			tos = 0
		}
		unsummed := 0 // not for a train, nor the witness, which goes after all others
		if x.unsummed && m.train == 0 && i == 0 {
			unsummed = 1
		}
		testkit.Must(x.t, setInt(conn, level, opt, int(tos)), setInt(conn, unix.SOL_UDP, unix.UDP_SEGMENT, m.train),
			setInt(conn, unix.SOL_SOCKET, unix.SO_NO_CHECK, unsummed))
		if _, err := conn.WriteToUDPAddrPort(m.payload, netip.AddrPortFrom(x.underlay(1), udpPort)); err != nil {
			x.t.Fatalf("%s: %v", k.name, err)
		}
	}
}

// ofTheKernel reports whether a packet is one that kernels send by themselves: about
// other packets, neighbours and multicast groups. No hostile packet is like that.
func ofTheKernel(b []byte) bool {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return b[9] == unix.IPPROTO_ICMP || b[9] == unix.IPPROTO_IGMP
	case len(b) >= 41 && b[0]>>4 == 6: // directly or, for groups, behind options
		return b[6] == unix.IPPROTO_ICMPV6 || b[6] == unix.IPPROTO_HOPOPTS && b[40] == unix.IPPROTO_ICMPV6
	}
	return b[0]>>4 != 4 && b[0]>>4 != 6 // ARP
}

// until returns the packets up to one that is like witness, without those of the kernel.
func (p *tap) until(what string, witness []byte) (came [][]byte) {
	p.t.Helper()
	_ = p.f.SetReadDeadline(time.Now().Add(testkit.Patience))
	port := binary.BigEndian.Uint16(witness[20:])
	buf := make([]byte, 1<<16)
	for {
		n, err := p.f.Read(buf)
		if err != nil {
			p.t.Fatalf("tap %s: nothing after %s: %v", p.name, what, err)
		}
		b := bytes.Clone(buf[:n])
		switch {
		case n == 0 || ofTheKernel(b):
		case b[0]>>4 == 4 && len(b) == len(witness) && binary.BigEndian.Uint16(b[20:]) == port:
			return came
		default:
			came = append(came, b)
		}
	}
}
