package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// packetQueue is a program that decides about packets of a host's pods, as a controller
// of network policies does: it takes super-packets whole, and packets pass while it
// does not run. The messages are those of linux/netfilter/nfnetlink_queue.h.
type packetQueue struct {
	fd      int
	denied  uint16        // port that nothing may go to
	largest atomic.Int64  // bytes of the largest packet
	drops   atomic.Uint64 // packets to the denied port
}

// The queue's number is that of the sidecar in flannel's chart.
const queueNumber = 100

const (
	queueConfig = unix.NFNL_SUBSYS_QUEUE<<8 | 2 // NFQNL_MSG_CONFIG
	queueVote   = unix.NFNL_SUBSYS_QUEUE<<8 | 1 // NFQNL_MSG_VERDICT
	queuePacket = unix.NFNL_SUBSYS_QUEUE << 8   // NFQNL_MSG_PACKET
)

// startQueue puts the packets to the pods of a host into a queue, and decides about
// them until the test ends.
func startQueue(t *testing.T, h *netlab.Host, denied uint16) *packetQueue {
	t.Helper()
	q := &packetQueue{denied: denied}
	testkit.Must(t, h.NS.Do(func() (err error) {
		if q.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
			return err
		}
		// A burst of super-packets must not overflow the socket.
		_ = unix.SetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		return unix.SetsockoptTimeval(q.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	}))
	be32 := func(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
	const failOpen, wholeGSO = 1, 4
	for _, attrs := range [][]*nl.RtAttr{
		{nl.NewRtAttr(1, []byte{1, 0, 0, 0})},                                                // NFQA_CFG_CMD: bind
		{nl.NewRtAttr(2, append(be32(0xffff), 2))},                                           // NFQA_CFG_PARAMS: copy packets
		{nl.NewRtAttr(4, be32(failOpen|wholeGSO)), nl.NewRtAttr(5, be32(failOpen|wholeGSO))}, // NFQA_CFG_MASK, NFQA_CFG_FLAGS
		{nl.NewRtAttr(3, be32(1<<16))},                                                       // NFQA_CFG_QUEUE_MAXLEN
	} {
		testkit.Must(t, q.configure(attrs...))
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				q.receive()
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		<-ended
		unix.Close(q.fd)
	})
	for _, program := range []string{"iptables", "ip6tables"} {
		out, err := h.NS.Command(context.Background(), program, "-t", "mangle", "-A", "POSTROUTING", "-o", "cni0",
			"-j", "NFQUEUE", "--queue-num", fmt.Sprint(queueNumber), "--queue-bypass").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return q
}

// configure sends a message and waits for the kernel's acknowledgement.
func (q *packetQueue) configure(attrs ...*nl.RtAttr) error {
	if err := q.send(queueConfig, unix.NLM_F_ACK, attrs...); err != nil {
		return err
	}
	buf := make([]byte, 1<<10)
	n, _, err := unix.Recvfrom(q.fd, buf, 0)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil || len(messages) == 0 || messages[0].Header.Type != unix.NLMSG_ERROR {
		return fmt.Errorf("configure queue: unexpected answer %v, %w", messages, err)
	}
	if code := int32(binary.NativeEndian.Uint32(messages[0].Data)); code != 0 {
		return fmt.Errorf("configure queue: %w", unix.Errno(-code))
	}
	return nil
}

// send sends a message about the queue.
func (q *packetQueue) send(kind uint16, flags int, attrs ...*nl.RtAttr) error {
	r := nl.NewNetlinkRequest(int(kind), flags)
	r.AddData(&nl.Nfgenmsg{Version: unix.NFNETLINK_V0, ResId: binary.NativeEndian.Uint16([]byte{0, queueNumber})})
	for _, a := range attrs {
		r.AddData(a)
	}
	return unix.Sendto(q.fd, r.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// receive takes the packets that have arrived, and decides about each.
func (q *packetQueue) receive() {
	buf := make([]byte, 1<<18)
	n, _, err := unix.Recvfrom(q.fd, buf, 0)
	if err != nil {
		return // nothing has arrived, or the kernel let packets bypass the queue
	}
	messages, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return
	}
	for _, m := range messages {
		if m.Header.Type != queuePacket || len(m.Data) < 4 {
			continue
		}
		attrs, err := nl.ParseRouteAttrAsMap(m.Data[4:])
		if err != nil {
			continue
		}
		id, packet := attrs[1].Value[:4], attrs[10].Value // NFQA_PACKET_HDR, NFQA_PAYLOAD
		const drop, accept = 0, 1
		verdict := uint32(accept)
		q.largest.Store(max(q.largest.Load(), int64(len(packet))))
		if portOf(packet) == q.denied {
			verdict = drop
			q.drops.Add(1)
		}
		_ = q.send(queueVote, 0, nl.NewRtAttr(2, append(binary.BigEndian.AppendUint32(nil, verdict), id...))) // NFQA_VERDICT_HDR
	}
}

// portOf is the destination port of a packet of TCP or UDP without extension headers, 0
// of another.
func portOf(packet []byte) uint16 {
	if len(packet) < 44 {
		return 0
	}
	next, begin := packet[9], int(packet[0]&15)*4
	if packet[0]>>4 == 6 {
		next, begin = packet[6], 40
	}
	if next != unix.IPPROTO_TCP && next != unix.IPPROTO_UDP {
		return 0
	}
	return binary.BigEndian.Uint16(packet[begin+2:])
}

// pod-a ── host a ──────── host b, a queue before cni0 ── pod-b
func TestNetworkPolicyIsObeyedWhileSuperPacketsPassItsQueue(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{engine: offloadEngine})
	const denied = 7777
	q := startQueue(t, l.Hosts[1], denied)
	a, b := l.pod(0), l.pod(1)
	mtu := int64(l.daemons[0].status().Dataplane.MTU())
	for _, addr := range []netip.Addr{b.Addr, b.Addr6} {
		t.Run(familyName(addr), func(t *testing.T) {
			// How many packets the kernel joins depends on timing.
			q.largest.Store(0)
			testkit.Eventually(t, "packets larger than the MTU pass the queue", func() bool {
				if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(a, b, addr); err != nil {
					t.Fatal(err)
				}
				return q.largest.Load() > mtu
			}, func() string { return fmt.Sprintf("the largest has %d bytes", q.largest.Load()) })
			if err := (datagrams{flows: 2, count: 200, window: 4, sizes: []int{8, 1200}}).run(a, b, addr); err != nil {
				t.Error(err)
			}

			server, err := b.NS.Listen("tcp", netip.AddrPortFrom(addr, denied).String())
			testkit.Must(t, err)
			defer server.Close()
			arrived := make(chan net.Conn, 1)
			go func() {
				if c, err := server.Accept(); err == nil {
					arrived <- c
				}
			}()
			before := q.drops.Load()
			ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
			defer cancel()
			go func() {
				testkit.Within(testkit.Patience, func() bool { return q.drops.Load() > before+1 }) // the first and a retransmission
				cancel()
			}()
			if c, err := a.NS.Dial(ctx, "tcp", server.Addr().String()); err == nil {
				c.Close()
				t.Errorf("a connection to port %d passes", denied)
			}
			select {
			case c := <-arrived:
				c.Close()
				t.Errorf("a connection to port %d has arrived", denied)
			default:
			}
			if q.drops.Load() <= before+1 {
				t.Errorf("the queue has not seen a connection to port %d", denied)
			}
		})
	}
}
