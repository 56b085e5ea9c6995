package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/pinger"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pacedStream is a TCP connection from one pod to another over which random bytes are
// sent at an even pace, so that a pause of the receiver is one of the network.
type pacedStream struct {
	from, to net.Conn
	end      atomic.Bool
	sent     chan error
	received chan error
	arrived  atomic.Int64  // bytes
	stall    time.Duration // the longest time without a byte; valid once it has ended
}

const (
	pacedChunk    = 16 << 10
	pacedInterval = time.Millisecond
)

func (r *restarting) stream() *pacedStream {
	r.t.Helper()
	l, err := r.pod(1).NS.Listen("tcp", netip.AddrPortFrom(r.pod(1).Addr, 0).String())
	testkit.Must(r.t, err)
	defer l.Close()
	s := &pacedStream{sent: make(chan error, 1), received: make(chan error, 1)}
	s.from, err = r.pod(0).NS.Dial(r.t.Context(), "tcp", l.Addr().String())
	testkit.Must(r.t, err)
	s.to, err = l.Accept()
	testkit.Must(r.t, err)
	seed := rand.Uint64()
	go func() { s.sent <- s.send(rand.NewPCG(seed, 0)) }()
	go func() { s.received <- s.receive(rand.NewPCG(seed, 0)) }()
	return s
}

// fill fills b, whose length is a multiple of 8, with the next bytes of the stream.
func fill(b []byte, source *rand.PCG) {
	for i := 0; i < len(b); i += 8 {
		v := source.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
}

func (s *pacedStream) send(source *rand.PCG) error {
	pace := time.NewTicker(pacedInterval)
	defer pace.Stop()
	b := make([]byte, pacedChunk)
	for !s.end.Load() {
		fill(b, source)
		if _, err := s.from.Write(b); err != nil {
			return err
		}
		<-pace.C
	}
	return s.from.Close()
}

func (s *pacedStream) receive(source *rand.PCG) error {
	want, got := make([]byte, pacedChunk), make([]byte, pacedChunk)
	last := time.Now()
	for at := 0; ; {
		n, err := s.to.Read(got[:pacedChunk-at])
		now := time.Now()
		s.stall = max(s.stall, now.Sub(last))
		last = now
		if at == 0 && n > 0 {
			fill(want, source)
		}
		if !bytes.Equal(got[:n], want[at:at+n]) {
			return fmt.Errorf("wrong bytes arrived within %d of byte %d", n, s.arrived.Load())
		}
		at = (at + n) % pacedChunk
		s.arrived.Add(int64(n))
		switch {
		case errors.Is(err, io.EOF) && at == 0:
			return s.to.Close()
		case err != nil:
			return fmt.Errorf("after %d bytes, %d of a chunk: %w", s.arrived.Load(), at, err)
		}
	}
}

// stop ends the stream. It returns an error unless all bytes have arrived as they were
// sent.
func (s *pacedStream) stop() (stall time.Duration, err error) {
	s.end.Store(true)
	err = errors.Join(<-s.sent, <-s.received)
	return s.stall, err
}

// pod-a ── host a ──────────── host b ── pod-b
//
// Each iteration is a restart on host a while a TCP connection carries 16 MB/s from pod-a
// to pod-b. "make restarts" runs it. It fails unless each byte arrives; it ends with a table as
// Markdown of how long nothing arrived.
func BenchmarkRestartUnderTCP(b *testing.B) {
	rows := make(map[string]string)
	defer func() {
		fmt.Println("\n| | longest stall of TCP, median | at most | bytes |\n|---|---|---|---|")
		for _, way := range restarts {
			fmt.Println(rows[way.name])
		}
	}()
	for _, way := range restarts {
		b.Run(way.name, func(b *testing.B) {
			r := newRestarting(b, way.systemd)
			var stalls []time.Duration
			var bytes int64
			for range b.N {
				s := r.stream()
				further := func(n int64) {
					from := s.arrived.Load()
					testkit.Eventually(b, "the stream continues", func() bool { return s.arrived.Load() > from+n })
				}
				further(2 << 20)
				way.disturb(b, r)
				further(8 << 20)
				stall, err := s.stop()
				testkit.Must(b, err)
				stalls, bytes = append(stalls, stall), bytes+s.arrived.Load()
			}
			slices.Sort(stalls)
			median, most := pinger.Milliseconds(stalls[len(stalls)/2]), pinger.Milliseconds(stalls[len(stalls)-1])
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median, "ms-stall-median")
			b.ReportMetric(most, "ms-stall-longest")
			rows[way.name] = fmt.Sprintf("| %s | %.1f ms | %.1f ms | %d MB, all intact |", way.name, median, most, bytes/1e6)
		})
	}
}
