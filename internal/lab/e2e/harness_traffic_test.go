package e2e

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// forFamilies runs a test as a subtest for each address family of a pod.
func forFamilies(t *testing.T, p *netlab.Pod, test func(t *testing.T, addr netip.Addr)) {
	for _, addr := range []netip.Addr{p.Addr, p.Addr6} {
		t.Run(familyName(addr), func(t *testing.T) { test(t, addr) })
	}
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// ofFamily returns the address of p of the same family as a.
func ofFamily(p *netlab.Pod, a netip.Addr) netip.Addr {
	if a.Is4() {
		return p.Addr
	}
	return p.Addr6
}

// content is n bytes without a pattern that depend on seed only.
func content(seed uint64, n int64) io.Reader {
	var key [16]byte
	binary.BigEndian.PutUint64(key[:], seed)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of another length
	}
	return io.LimitReader(cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, 16)), R: zeros{}}, n)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// streams are TCP connections that a test loads.
type streams struct {
	flows    int
	up, down int64           // bytes in all: from the client's pod and back, at the same time
	until    context.Context // closes the connections when it ends, if not nil
}

// run moves the bytes between a client in from and a server on addr in to, and
// returns an error unless what arrives has the SHA-256 of what was sent.
func (s streams) run(from, to *netlab.Pod, addr netip.Addr) error {
	l, err := to.NS.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return err
	}
	defer l.Close()
	results := make(chan error)
	for i := range s.flows {
		client, server, err := connect(l, from)
		if err != nil {
			return err
		}
		defer client.Close()
		defer server.Close()
		if s.until != nil {
			defer context.AfterFunc(s.until, func() { client.Close(); server.Close() })()
		}
		go func() { results <- pump(client, server, uint64(2*i), s.up/int64(s.flows)) }()
		go func() { results <- pump(server, client, uint64(2*i+1), s.down/int64(s.flows)) }()
	}
	for range 2 * s.flows {
		err = errors.Join(err, <-results)
	}
	return err
}

// connect makes one connection to l.
func connect(l net.Listener, from *netlab.Pod) (client, server *net.TCPConn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	c, err := from.NS.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	s, err := l.Accept()
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), nil
}

// pump sends n bytes from one end of a connection to the other and compares.
func pump(from, to *net.TCPConn, seed uint64, n int64) error {
	sent := sha256.New()
	failed := make(chan error, 1)
	go func() {
		// Without the wrapper io.Copy would use buffers of its own, of 32 KiB.
		_, err := io.CopyBuffer(struct{ io.Writer }{testkit.Moving{Conn: from}}, io.TeeReader(content(seed, n), sent), make([]byte, 256<<10))
		failed <- errors.Join(err, from.CloseWrite())
	}()
	received := sha256.New()
	got, err := io.CopyBuffer(received, struct{ io.Reader }{testkit.Moving{Conn: to}}, make([]byte, 256<<10))
	if err := errors.Join(err, <-failed); err != nil {
		return fmt.Errorf("%s to %s: %d of %d bytes arrived: %w", from.LocalAddr(), from.RemoteAddr(), got, n, err)
	}
	if got != n || !bytes.Equal(sent.Sum(nil), received.Sum(nil)) {
		return fmt.Errorf("%s to %s: %d of %d bytes arrived, SHA-256 %x instead of %x",
			from.LocalAddr(), from.RemoteAddr(), got, n, received.Sum(nil), sent.Sum(nil))
	}
	return nil
}

// datagrams are UDP flows whose packets are echoed by the other end.
type datagrams struct {
	flows  int
	count  int   // of each flow
	window int   // in transit at a time, per flow
	sizes  []int // of the payloads in turn, at least 8 bytes
}

// run exchanges the datagrams between clients in from and one server on addr in
// to. It returns an error unless each comes back once, in order and as it was
// sent.
func (d datagrams) run(from, to *netlab.Pod, addr netip.Addr) error {
	if err := acquaint(from, addr); err != nil {
		return err
	}
	server, err := listenUDP(to.NS, netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	defer server.Close()
	go echo(server)
	results := make(chan error)
	for i := range d.flows {
		client, err := dialUDP(from.NS, addrPort(server))
		if err != nil {
			return err
		}
		defer client.Close()
		go func() { results <- d.flow(client, uint64(i)) }()
	}
	for range d.flows {
		err = errors.Join(err, <-results)
	}
	return err
}

// flow sends and receives the datagrams of one flow.
func (d datagrams) flow(conn *net.UDPConn, seed uint64) error {
	out, in := content(seed, 1<<62), content(seed, 1<<62)
	buf, want := make([]byte, 1<<16), make([]byte, 1<<16)
	for sent, received := 0, 0; received < d.count; {
		if sent < d.count && sent < received+d.window {
			b := buf[:d.sizes[sent%len(d.sizes)]]
			_, _ = io.ReadFull(out, b)
			if _, err := conn.Write(b); err != nil {
				return fmt.Errorf("datagram %d of %d bytes: %w", sent, len(b), err)
			}
			sent++
			continue
		}
		conn.SetReadDeadline(time.Now().Add(testkit.Patience))
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("datagram %d of %d bytes: no echo: %w", received, d.sizes[received%len(d.sizes)], err)
		}
		b := want[:d.sizes[received%len(d.sizes)]]
		_, _ = io.ReadFull(in, b)
		if !bytes.Equal(buf[:n], b) {
			return fmt.Errorf("datagram %d of %d bytes: lost or changed, the next echo has %d bytes and belongs to another", received, len(b), n)
		}
		received++
	}
	return nil
}

// echo sends back what arrives until conn is closed.
func echo(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteToUDPAddrPort(buf[:n], peer)
	}
}

// bigBuffer is room for what a test has in transit, beyond what an unprivileged
// socket may have.
const bigBuffer = 8 << 20

// listenUDP opens a socket in ns.
func listenUDP(ns *netlab.Namespace, local netip.AddrPort) (*net.UDPConn, error) {
	pc, err := ns.ListenPacket("udp", local.String())
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	return conn, setInt(conn, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bigBuffer)
}

// dialUDP opens a connected socket in ns.
func dialUDP(ns *netlab.Namespace, to netip.AddrPort) (*net.UDPConn, error) {
	c, err := ns.Dial(context.Background(), "udp", to.String())
	if err != nil {
		return nil, err
	}
	conn := c.(*net.UDPConn)
	return conn, setInt(conn, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bigBuffer)
}

// addrPort is where conn is bound.
func addrPort(conn *net.UDPConn) netip.AddrPort {
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// setInt sets a socket option.
func setInt(conn syscall.Conn, level, opt, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), level, opt, value)
	}), err)
}

// getInt reads a socket option.
func getInt(conn syscall.Conn, level, opt int) (value int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		value, err = unix.GetsockoptInt(int(fd), level, opt)
	})
	return value, errors.Join(cerr, err)
}

// counters returns what the kernel counts in ns: those of /proc/net/snmp and
// netstat as "UdpInCsumErrors", those of snmp6 as they stand there.
func counters(t testing.TB, ns *netlab.Namespace) map[string]uint64 {
	t.Helper()
	var text []byte
	if err := ns.Do(func() error {
		for _, name := range []string{"snmp", "netstat", "snmp6"} {
			// /proc/net is that of the main thread.
			b, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil {
				return err
			}
			text = append(text, b...)
		}
		return nil
	}); err != nil {
		t.Fatalf("counters of %s: %v", ns, err)
	}
	all := make(map[string]uint64)
	var names []string // of the line above: in snmp and netstat names and values alternate
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if prefix, ok := strings.CutSuffix(f[0], ":"); !ok {
			all[f[0]], _ = strconv.ParseUint(f[1], 10, 64)
		} else if len(names) != len(f) || names[0] != f[0] {
			names = f
		} else {
			for i := range f[1:] {
				all[prefix+names[i+1]], _ = strconv.ParseUint(f[i+1], 10, 64)
			}
			names = nil
		}
	}
	return all
}
