package netlab_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// numbered sends count numbered datagrams between the hosts and returns the
// numbers in the order of their arrival. Payloads that are not as sent fail
// the test. In the end the relay no longer impairs anything.
func numbered(t *testing.T, topo *netlab.Topology, count int) (got []int) {
	t.Helper()
	from, to := topo.Hosts[0], topo.Hosts[1]
	srv, err := to.NS.ListenPacket("udp", netip.AddrPortFrom(to.Addr, 0).String())
	testkit.Must(t, err)
	defer srv.Close()
	// Room for all, so that what is missing was lost on the wire.
	testkit.Must(t, srv.(*net.UDPConn).SetReadBuffer(4<<20))
	conn, err := from.NS.Dial(t.Context(), "udp", srv.LocalAddr().(*net.UDPAddr).AddrPort().String())
	testkit.Must(t, err)
	defer conn.Close()

	const filler = 0xa5
	msg := bytes.Repeat([]byte{filler}, 1200)
	send := func(number int) {
		t.Helper()
		binary.BigEndian.PutUint32(msg, uint32(number))
		_, err := conn.Write(msg)
		testkit.Must(t, err)
	}
	// No datagram waits for ARP, or others would overtake it.
	near, err := from.NS.Netlink().LinkByName(netlab.UnderlayLink)
	testkit.Must(t, err)
	far, err := to.NS.Netlink().LinkByName(netlab.UnderlayLink)
	testkit.Must(t, err)
	testkit.Must(t, from.NS.Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: near.Attrs().Index, IP: to.Addr.AsSlice(), HardwareAddr: far.Attrs().HardwareAddr, State: netlink.NUD_PERMANENT,
	}))
	before := topo.Relay.Stats().Received
	for i := range count {
		send(i)
		if i%50 == 49 || i == count-1 {
			testkit.Eventually(t, "the relay has received what was sent", func() bool {
				return topo.Relay.Stats().Received >= before+uint64(i+1)
			})
		}
	}
	// Frames of other protocols count too, so the last may still be on their way.
	quiet, seen := 0, uint64(0)
	testkit.Eventually(t, "the relay receives nothing more", func() bool {
		if now := topo.Relay.Stats().Received; now != seen {
			quiet, seen = 0, now
		}
		quiet++
		return quiet == 20
	})
	// What comes after these has come before them.
	const last = 32
	topo.Relay.Set(netlab.Impairment{})
	for i := range last {
		send(count + i)
	}
	buf := make([]byte, len(msg)+1)
	for {
		testkit.Must(t, srv.SetReadDeadline(time.Now().Add(testkit.Patience)))
		n, _, err := srv.ReadFrom(buf)
		testkit.Must(t, err)
		if n != len(msg) || buf[n-1] != filler {
			t.Errorf("datagram of %d bytes, ends in %#x", n, buf[n-1])
		}
		switch number := int(binary.BigEndian.Uint32(buf)); {
		case number == count+last-1:
			return got
		case number < count:
			got = append(got, number)
		}
	}
}

func inversions(order []int) (n int) {
	for i := 1; i < len(order); i++ {
		if order[i] < order[i-1] {
			n++
		}
	}
	return n
}

func TestRelayForwardsEverythingInOrderByDefault(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{}})
	got := numbered(t, topo, 2000)
	if len(got) != 2000 || inversions(got) > 0 {
		t.Errorf("%d of 2000 arrived, %d inversions; relay %+v", len(got), inversions(got), topo.Relay.Stats())
	}
}

func TestRelayLosesTheGivenFraction(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{Loss: 0.1, Seed: 1}})
	got := len(numbered(t, topo, 2000))
	if lost := 2000 - got; lost < 140 || lost > 260 {
		t.Errorf("%d of 2000 lost, want about 200", lost)
	}
	topo.Relay.Set(netlab.Impairment{Loss: 1})
	if got := numbered(t, topo, 100); len(got) != 0 {
		t.Errorf("%d datagrams passed a cut wire", len(got))
	}
}

func TestRelayReordersWithoutLosing(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{Reorder: 0.05, ReorderBy: 4, Seed: 1}})
	got := numbered(t, topo, 2000)
	if n := inversions(got); len(got) != 2000 || n < 50 || n > 150 {
		t.Errorf("%d of 2000 arrived with %d inversions, want all and about 95", len(got), n)
	}
}

func TestRelayCorruptsSoThatChecksumsNotice(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{Corrupt: 0.1, Seed: 1}})
	got := len(numbered(t, topo, 2000)) // numbered checks what does arrive
	if lost := 2000 - got; lost < 140 || lost > 260 {
		t.Errorf("%d of 2000 were refused, want about 200; relay %+v", lost, topo.Relay.Stats())
	}
}

func TestRelaySeesFramesOfTheMTUOnly(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{}})
	transfer(t, topo.Hosts[0].NS, topo.Hosts[1].NS, topo.Hosts[1].Addr, 4<<20)
	// 4 MiB take 2,900 frames of 1,448 bytes.
	if s := topo.Relay.Stats(); s.Received < 2900 {
		t.Errorf("relay %+v", s)
	}
}

func TestTCPSurvivesTheRelayUnharmed(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{
		Impair: &netlab.Impairment{Loss: 0.005, Reorder: 0.01, Corrupt: 0.002, Seed: 1},
	})
	if err := topo.AddVXLAN(); err != nil {
		t.Fatal(err)
	}
	from, to := topo.Hosts[0].Pods[0], topo.Hosts[1].Pods[0]
	transfer(t, from.NS, to.NS, to.Addr, 32<<20)
	if s := topo.Relay.Stats(); s.Dropped == 0 || s.Corrupted == 0 || s.Reordered == 0 {
		t.Errorf("the relay did nothing: %+v", s)
	}
}

// transfer moves size random bytes by TCP and compares their hashes.
func transfer(t *testing.T, from, to *netlab.Namespace, addr netip.Addr, size int64) {
	t.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan []byte, 1)
	go func() {
		defer close(sent)
		conn, err := from.Dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
			l.Close()
			return
		}
		defer conn.Close()
		hash := sha256.New()
		if _, err := io.CopyN(testkit.Moving{Conn: conn}, io.TeeReader(rand.NewChaCha8([32]byte{1}), hash), size); err != nil {
			t.Error(err)
		}
		sent <- hash.Sum(nil)
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hash := sha256.New()
	if n, err := io.Copy(hash, testkit.Moving{Conn: conn}); err != nil || n != size {
		t.Fatalf("received %d bytes, %v", n, err)
	}
	if !bytes.Equal(hash.Sum(nil), <-sent) {
		t.Error("what arrived is not what was sent")
	}
}

func TestRelayMarksECNCapablePacketsOnly(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Impair: &netlab.Impairment{Mark: 0.5, Seed: 1}})
	const count = 200
	for _, f := range []ecnFamily{
		{topo.Hosts[1].Addr, unix.IPPROTO_IP, unix.IP_TOS, unix.IP_RECVTOS},
		{topo.Hosts[1].Addr6, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, unix.IPV6_RECVTCLASS},
	} {
		for _, sent := range []byte{0, 1, 2} {
			seen := f.arriving(t, topo, sent, count)
			marked := seen[3]
			if seen[sent]+marked != count || marked < count/4 && sent != 0 || marked > 0 && sent == 0 {
				t.Errorf("%s: of %d packets sent with ECN %d arrived, by ECN, %v", f.to, count, sent, seen)
			}
		}
	}
}

// ecnFamily is how the ECN field is set and seen in an address family.
type ecnFamily struct {
	to               netip.Addr
	level, set, show int // socket options
}

// arriving sends datagrams with an ECN field one by one and counts those that
// arrive, by their ECN field.
func (f ecnFamily) arriving(t *testing.T, topo *netlab.Topology, ecn byte, count int) map[byte]int {
	t.Helper()
	pc, err := topo.Hosts[1].NS.ListenPacket("udp", netip.AddrPortFrom(f.to, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	c, err := topo.Hosts[0].NS.Dial(t.Context(), "udp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	srv, conn := pc.(*net.UDPConn), c.(*net.UDPConn)
	setOption(t, srv, f.level, f.show, 1)
	setOption(t, conn, f.level, f.set, int(ecn))
	seen := make(map[byte]int)
	oob := make([]byte, 64)
	for range count {
		if _, err := conn.Write([]byte("marked?")); err != nil {
			t.Fatal(err)
		}
		srv.SetReadDeadline(time.Now().Add(testkit.Patience))
		_, n, _, _, err := srv.ReadMsgUDP(make([]byte, 16), oob)
		if err != nil {
			t.Fatal(err)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			t.Fatalf("control messages: %v, %v", msgs, err)
		}
		seen[msgs[0].Data[0]&3]++ // a byte in IPv4, an int in IPv6
	}
	return seen
}

func setOption(t *testing.T, conn *net.UDPConn, level, opt, value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, value) }); cerr != nil || err != nil {
		t.Fatalf("set socket option %d: %v %v", opt, cerr, err)
	}
}
