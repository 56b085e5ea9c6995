package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// stream is a TCP connection between two pods with traffic both ways,
// of which each byte is compared.
type stream struct {
	a, b    *net.TCPConn
	end     chan struct{}
	results chan error
	arrived [2]atomic.Int64 // bytes
}

// startStream starts a stream between the first two pods. Stock flannel must have
// read the leases before, which it does after it is ready.
func (l *etcdLab) startStream(t *testing.T) *stream {
	t.Helper()
	return startStream(t, l.pod(0), l.pod(1))
}

// startStream starts a stream that lasts until it is stopped, once the pods reach each
// other.
func startStream(t *testing.T, a, b *netlab.Pod) *stream {
	t.Helper()
	testkit.Eventually(t, "the pods reach each other", func() bool {
		return pingOnce(a, b.Addr) == nil && pingOnce(b, a.Addr) == nil
	})
	server, err := b.NS.Listen("tcp", netip.AddrPortFrom(b.Addr, 0).String())
	testkit.Must(t, err)
	defer server.Close()
	s := &stream{end: make(chan struct{}), results: make(chan error, 4)}
	s.a, s.b, err = connect(server, a)
	testkit.Must(t, err)
	t.Cleanup(func() { s.a.Close(); s.b.Close() })
	for i, way := range [][2]*net.TCPConn{{s.a, s.b}, {s.b, s.a}} {
		go func() { s.results <- s.send(way[0], uint64(i)) }()
		go func() { s.results <- s.receive(way[1], uint64(i)) }()
	}
	return s
}

// streamStep is written each millisecond: 4 MB/s are no burden.
const streamStep = 4 << 10

func (s *stream) send(to *net.TCPConn, seed uint64) error {
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	from, step := content(seed, 1<<62), make([]byte, streamStep)
	for {
		select {
		case <-s.end:
			return to.CloseWrite()
		case <-pace.C:
		}
		_, _ = io.ReadFull(from, step)
		if _, err := to.Write(step); err != nil {
			return err
		}
	}
}

// receive returns nil at the end of the stream, unless a byte was wrong or a
// step is not whole.
func (s *stream) receive(from *net.TCPConn, seed uint64) error {
	want, right, got := content(seed, 1<<62), make([]byte, streamStep), make([]byte, streamStep)
	for {
		if _, err := io.ReadFull(from, got); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		_, _ = io.ReadFull(want, right)
		if !bytes.Equal(got, right) {
			return fmt.Errorf("after %d bytes, what arrives differs from what was sent", s.arrived[seed].Load())
		}
		s.arrived[seed].Add(streamStep)
	}
}

// passes waits until half a megabyte more has arrived at either end, however
// long TCP waits before it retransmits what was lost.
func (s *stream) passes(t *testing.T, when string) {
	t.Helper()
	before := [2]int64{s.arrived[0].Load(), s.arrived[1].Load()}
	if !testkit.Within(testkit.Patience, func() bool {
		return s.arrived[0].Load() > before[0]+512<<10 && s.arrived[1].Load() > before[1]+512<<10
	}) {
		t.Fatalf("%s the connection stalls", when)
	}
}

// stop ends the stream and waits for everything in transit.
func (s *stream) stop(t *testing.T) {
	t.Helper()
	close(s.end)
	for range cap(s.results) {
		select {
		case err := <-s.results:
			if err != nil {
				t.Errorf("stream: %v", err)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("stream: did not end")
		}
	}
}
