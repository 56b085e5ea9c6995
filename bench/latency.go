package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// requestSize is the payload of a request and of its answer, in bytes.
	requestSize = 64
	// requestTimeout is when an answer counts as lost, in receive timeouts
	// of the socket, that is 200 ms.
	requestTimeout = 10
)

// requests is the load of one request after the other, each a datagram that the
// server sends back.
func requests(ctx context.Context, c *Connection, d time.Duration) (Figures, error) {
	p, err := newUDPPair(c)
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	var over atomic.Bool
	var server sync.WaitGroup
	defer p.close()
	defer server.Wait()
	defer over.Store(true)
	server.Go(func() { p.answer(&over) })

	if _, _, err := p.ask(ctx, warmUp); err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	trips, lost, err := p.ask(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	slices.Sort(trips)
	half := func(p float64) float64 { return float64(percentile(trips, p)) / 2 / float64(time.Microsecond) }
	return Figures{
		halfRTT50.Key: half(0.50), halfRTT99.Key: half(0.99), halfRTT999.Key: half(0.999),
		loss.Key: 100 * float64(lost) / float64(lost+len(trips)),
	}, nil
}

// percentile returns the smallest of the sorted values that a fraction p of
// them does not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	i := int(p * float64(len(sorted)))
	return sorted[min(i, len(sorted)-1)]
}

// answer sends every datagram back until over.
func (p udpPair) answer(over *atomic.Bool) {
	buf := make([]byte, requestSize)
	for !over.Load() {
		n, err := unix.Read(p.server, buf)
		if err == nil {
			unix.Write(p.server, buf[:n])
		}
	}
}

// ask sends requests for d and returns how long each answer took.
func (p udpPair) ask(ctx context.Context, d time.Duration) (trips []time.Duration, lost int, err error) {
	trips = make([]time.Duration, 0, 1<<17) // more than a second's worth
	request, answer := make([]byte, requestSize), make([]byte, requestSize)
	for started := time.Now(); time.Since(started) < d; {
		if err := context.Cause(ctx); err != nil {
			return nil, 0, err
		}
		sent := time.Now()
		// The time stamp also tells the answers apart.
		binary.NativeEndian.PutUint64(request, uint64(sent.UnixNano()))
		if _, err := unix.Write(p.client, request); err != nil {
			return nil, 0, fmt.Errorf("send: %w", err)
		}
		if p.await(request, answer) {
			trips = append(trips, time.Since(sent))
		} else {
			lost++
		}
	}
	if len(trips) == 0 {
		return nil, lost, errors.New("no answer arrived")
	}
	return trips, lost, nil
}

// await receives until the answer to request is there; false means that it is
// not coming.
func (p udpPair) await(request, answer []byte) bool {
	for timeouts := 0; timeouts < requestTimeout; {
		if _, err := unix.Read(p.client, answer); err != nil {
			timeouts++
		} else if slices.Equal(answer, request) {
			return true
		}
	}
	return false
}
