package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// forTunnels runs a test as parallel subtests over twill with each engine, and
// over the VXLAN of the kernel, which shows what the test may expect.
func forTunnels(t *testing.T, opts labOptions, test func(t *testing.T, l *lab)) {
	t.Run("kernel VXLAN", func(t *testing.T) {
		t.Parallel()
		l := &lab{Topology: netlabtest.New(t, opts.Options), t: t}
		testkit.Must(t, l.AddVXLAN())
		test(t, l)
	})
	forEngines(t, opts, test)
}

// command runs a command in ns.
func command(t testing.TB, ns *netlab.Namespace, name string, args ...string) {
	t.Helper()
	if out, err := ns.Command(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// stream moves n bytes through a TCP connection from pod-a to addr in pod-b.
// prepare, if not nil, sets the client's socket up before it connects.
func (l *lab) stream(addr netip.Addr, n int64, prepare func(fd int) error) error {
	listener, err := l.pod(1).NS.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		return err
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		if prepare == nil {
			return nil
		}
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = prepare(int(fd)) }), err)
	}}
	var client net.Conn
	if err := l.pod(0).NS.Do(func() error {
		client, err = dialer.DialContext(ctx, "tcp", listener.Addr().String())
		return err
	}); err != nil {
		return err
	}
	defer client.Close()
	server, err := listener.Accept()
	if err != nil {
		return err
	}
	defer server.Close()
	return pump(client.(*net.TCPConn), server.(*net.TCPConn), 1, n)
}

// The checksum of a packet with a segment routing header covers the last of its
// segments, and the destination of the IPv6 header is the next.
//
//	pod-a ── host a ── host b ── pod-b
//	                             second address, then the first
func TestTCPCrossesByWayOfSegmentRouting(t *testing.T) {
	t.Parallel()
	forTunnels(t, labOptions{}, func(t *testing.T, l *lab) {
		via := netip.MustParsePrefix("fd00:10:5:2::99/64")
		addAddr(t, l.pod(1).NS, "eth0", via)
		for _, p := range []*netlab.Pod{l.pod(0), l.pod(1)} {
			for _, dev := range []string{"all", "eth0"} {
				testkit.Must(t, p.NS.Sysctl("net/ipv6/conf/"+dev+"/seg6_enabled", "1"))
			}
		}
		testkit.Must(t, acquaint(l.pod(0), l.pod(1).Addr6))
		command(t, l.pod(0).NS, "ip", "-6", "route", "add", l.pod(1).Addr6.String()+"/128", "encap", "seg6", "mode", "inline",
			"segs", via.Addr().String(), "via", l.Hosts[0].Gateway6().String(), "dev", "eth0")
		if err := l.stream(l.pod(1).Addr6, 1<<20, nil); err != nil {
			t.Error(err)
		}
		// A sender retransmits each lost segment separately, and so succeeds in
		// the end even if only the checksums of super-packets are wrong.
		if n := counters(t, l.pod(1).NS)["TcpInCsumErrors"]; n != 0 {
			t.Errorf("%d segments arrived with a wrong checksum", n)
		}
	})
}

// The same for a source route of IPv4, which pods and hosts must be configured to accept.
func TestTCPCrossesOnASourceRoute(t *testing.T) {
	t.Parallel()
	forTunnels(t, labOptions{}, func(t *testing.T, l *lab) {
		via := netip.MustParsePrefix("10.5.2.99/24")
		addAddr(t, l.pod(1).NS, "eth0", via)
		for _, ns := range []*netlab.Namespace{l.pod(0).NS, l.Hosts[0].NS, l.Hosts[1].NS, l.pod(1).NS} {
			testkit.Must(t, ns.Sysctl("net/ipv4/conf/all/accept_source_route", "1"))
		}
		loose := append(append([]byte{131, 7, 4}, via.Addr().AsSlice()...), 1) // RFC 791 §3.1
		if err := l.stream(l.pod(1).Addr, 1<<20, func(fd int) error {
			return unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, string(loose))
		}); err != nil {
			t.Error(err)
		}
	})
}

// A TCP segment may have more than a kilobyte of headers before it.
func TestTCPCrossesBehindLongExtensionHeaders(t *testing.T) {
	t.Parallel()
	forTunnels(t, labOptions{}, func(t *testing.T, l *lab) {
		for _, size := range []int{192, 1024} {
			if err := l.stream(l.pod(1).Addr6, 1<<20, func(fd int) error {
				return unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, string(destinationOptions(size)))
			}); err != nil {
				t.Errorf("destination options of %d bytes: %v", size, err)
			}
		}
	})
}

// destinationOptions is a header of n bytes, a multiple of 8, with options for
// experiments that receivers skip (RFC 8200 §4.2, RFC 4727 §3.3). Linux accepts
// at most 8 of them, and at most 7 bytes of padding.
func destinationOptions(n int) []byte {
	b := []byte{0, byte(n/8 - 1)}
	for len(b) < n {
		size := min(n-len(b), 250)
		b = append(append(b, 0x1e, byte(size-2)), make([]byte, size-2)...)
	}
	return b
}
