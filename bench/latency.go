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

	"github.com/twillnet/twill/bench/report"
)

const (
	// requestSize is the payload of a request and of its answer, in bytes.
	requestSize = 64
	// requestTimeout is the time after which an answer counts as lost, as a number of
	// receive timeouts of the socket: 200 ms in total.
	requestTimeout = 10
)

// requests is the load of one request after the other, each a datagram that the
// server sends back. The two ends run on separate CPUs.
func requests(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
	f, err := runRequests(ctx, c, d)
	if err != nil {
		return nil, fmt.Errorf("requests: %w", err)
	}
	return f, nil
}

// requestsUnderLoad is like requests, while one TCP stream runs at full speed in the
// requests' direction.
func requestsUnderLoad(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
	b, err := startBulk(ctx, c, 1, 0)
	if err != nil {
		return nil, fmt.Errorf("requests beside a stream: %w", err)
	}
	defer b.stop()
	bytes, started := b.received.Load(), time.Now()
	f, err := runRequests(ctx, c, d)
	if err != nil {
		return nil, fmt.Errorf("requests beside a stream: %w", err)
	}
	bytes = b.received.Load() - bytes
	f[report.Throughput.Key] = 8 * float64(bytes) / 1e9 / time.Since(started).Seconds()
	delete(f, report.CPUPerMillion.Key) // nearly all of it is used by the stream
	return f, nil
}

func runRequests(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
	p, err := newUDPPair(c)
	if err != nil {
		return nil, err
	}
	var over atomic.Bool
	var server sync.WaitGroup
	defer p.close()
	defer server.Wait()
	defer over.Store(true)
	server.Go(func() {
		onCPU(serverEnd, func() error {
			p.answer(&over)
			return nil
		})
	})
	var trips []time.Duration
	var lost int
	var u usage
	err = onCPU(clientEnd, func() error {
		if _, _, err := p.ask(ctx, warmUp); err != nil {
			return err
		}
		m, err := startMeter(c.pids())
		if err != nil {
			return err
		}
		if trips, lost, err = p.ask(ctx, d); err != nil {
			return err
		}
		u, err = m.stop()
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(trips)
	half := func(p float64) float64 { return float64(percentile(trips, p)) / 2 / float64(time.Microsecond) }
	return u.memory(report.Figures{
		report.HalfRTT50.Key: half(0.50), report.HalfRTT99.Key: half(0.99), report.HalfRTT999.Key: half(0.999),
		report.Loss.Key:          100 * float64(lost) / float64(lost+len(trips)),
		report.CPUPerMillion.Key: u.machine.Seconds() / (float64(len(trips)) / 1e6),
	}), nil
}

// percentile returns the smallest of the sorted values that a fraction p of them does not
// exceed.
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
		// The time stamp also identifies the answer.
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

// await receives until the answer to request arrives; it returns false if the answer
// is lost.
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
