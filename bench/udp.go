package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/lab/netlab/mmsg"
)

const (
	// severalFlows is how many flows datagrams are spread over if the path, rather
	// than a sender, should be the bottleneck: in the kernel's paths, the sender's
	// thread processes a datagram all the way to the receiver's socket.
	severalFlows = 4
	// batchSize is how many datagrams a sendmmsg or recvmmsg carries.
	batchSize = 32
	// settle is how long to wait for datagrams still in transit.
	settle = 30 * time.Millisecond
	// tolerated is the loss below which a rate counts as carried.
	tolerated = 0.01
	// probeTime is how long the search tries a rate.
	probeTime = 120 * time.Millisecond
	// retries is how often a rate is lowered that a longer run does not sustain, each
	// time by the factor retried.
	retries = 6
	retried = 0.88
	// searchTime is about how long a search takes.
	searchTime = 1100 * time.Millisecond
)

var (
	// firstSearch begins at the rate received from an unlimited flood, which can be
	// far from what is carried.
	firstSearch = search{probes: 8, step: 1.4, close: 1.05}
	// nextSearch begins at the rate that was carried last time.
	nextSearch = search{probes: 5, step: 1.1, close: 1.04}
)

// ipv4UDPHeaders is the length of the headers before the payload in an IPv4 packet.
const ipv4UDPHeaders = 20 + 8

// traffic describes a flood.
type traffic struct {
	payload int // of a datagram, in bytes
	flows   int // each with a thread that sends and one that receives
}

// datagrams is the load of UDP datagrams from client to server, at the highest
// rate at which less than one in a hundred is lost. payload is in bytes; zero
// means as much as fits the MTU.
func datagrams(payload, flows int) func(context.Context, *Connection, time.Duration) (report.Figures, error) {
	return func(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
		t := traffic{payload, flows}
		if payload == 0 {
			t.payload = c.MTU - ipv4UDPHeaders
		}
		f, err := carriedRate(ctx, c, t, d)
		if err != nil {
			return nil, fmt.Errorf("UDP, %d bytes in %d flows: %w", t.payload, flows, err)
		}
		bytes := float64(f.received) * float64(t.payload)
		return f.memory(report.Figures{
			report.PacketRate.Key:     f.rate() / 1e3,
			report.Throughput.Key:     8 * bytes / 1e9 / f.elapsed.Seconds(),
			report.Loss.Key:           100 * f.loss(),
			report.CPUPerGB.Key:       f.machine.Seconds() / (bytes / 1e9),
			report.CPUPerMillion.Key:  f.machine.Seconds() / (float64(f.received) / 1e6),
			report.DaemonCPUPerGB.Key: f.daemons.Seconds() / (bytes / 1e9),
		}), nil
	}
}

// carriedRate finds the highest rate with tolerable loss and runs it for d.
func carriedRate(ctx context.Context, c *Connection, t traffic, d time.Duration) (*flood, error) {
	start, how := c.carried[t], nextSearch
	if start == 0 {
		f, err := runFlood(ctx, c, t, 0, probeTime)
		if err != nil {
			return nil, err
		}
		start, how = f.rate(), firstSearch
	}
	rate, err := how.highest(start, func(rate float64) (bool, error) {
		f, err := runFlood(ctx, c, t, rate, probeTime)
		return err == nil && f.loss() < tolerated, err
	})
	if err != nil {
		return nil, err
	}
	// A longer run is exposed to more hiccups of the machine than a probe.
	for range retries {
		f, err := runFlood(ctx, c, t, rate, d)
		if err != nil {
			return nil, err
		}
		if f.loss() < tolerated {
			c.carried[t] = rate
			return f, nil
		}
		rate = min(rate, f.sendRate()) * retried // the senders may not have reached it
	}
	return nil, fmt.Errorf("%w, down to %.0f datagrams per second", errLossy, rate/retried)
}

// errLossy means that a path, or the machine beneath it, loses datagrams at any
// rate.
var errLossy = fmt.Errorf("at least %g %% were lost at any rate", 100*tolerated)

// flood is the result of sending datagrams for a while.
type flood struct {
	sent, received uint64
	usage
}

// sendRate returns the number of datagrams sent per second.
func (f *flood) sendRate() float64 { return float64(f.sent) / f.elapsed.Seconds() }

// rate returns the number of datagrams received per second.
func (f *flood) rate() float64 { return float64(f.received) / f.elapsed.Seconds() }

// loss returns the fraction of datagrams that did not arrive.
func (f *flood) loss() float64 { return max(0, 1-float64(f.received)/float64(f.sent)) }

// runFlood sends datagrams at rate, in datagrams per second over all flows, for
// d; a rate of zero means as fast as possible.
func runFlood(ctx context.Context, c *Connection, t traffic, rate float64, d time.Duration) (*flood, error) {
	var pairs []udpPair
	defer func() {
		for _, p := range pairs {
			p.close()
		}
	}()
	for range t.flows {
		p, err := newUDPPair(c)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, p)
	}
	m, err := startMeter(c.pids())
	if err != nil {
		return nil, err
	}
	var sent, received atomic.Uint64
	var over atomic.Bool // no more datagrams will arrive
	var senders, receivers sync.WaitGroup
	for _, p := range pairs {
		receivers.Go(func() { received.Add(p.count(t.payload, &over)) })
		senders.Go(func() { sent.Add(p.flood(ctx, t.payload, rate/float64(t.flows), d)) })
	}
	senders.Wait()
	elapsed := time.Since(m.started)
	err = sleep(ctx, settle)
	over.Store(true)
	receivers.Wait()
	if err != nil {
		return nil, err
	}
	u, err := m.stop()
	if err != nil {
		return nil, err
	}
	u.elapsed = elapsed
	f := &flood{sent: sent.Load(), received: received.Load(), usage: u}
	if f.received == 0 {
		return nil, errors.New("no datagrams arrived")
	}
	return f, nil
}

// flood sends for d and returns how many datagrams the kernel accepted.
func (p udpPair) flood(ctx context.Context, size int, rate float64, d time.Duration) (sent uint64) {
	b, payload := mmsg.NewBatch(batchSize), make([]byte, size)
	for i := range batchSize {
		b.Set(i, payload)
	}
	started, behind := time.Now(), 0.0
	for last := started; ctx.Err() == nil; {
		now := time.Now()
		if now.Sub(started) >= d {
			break
		}
		n := batchSize
		if rate > 0 {
			// The delay caused by a stall is not fully made up for,
			// since that would be an unlimited flood.
			behind = min(behind+rate*now.Sub(last).Seconds(), 4*batchSize)
			if last = now; behind < 1 {
				pause()
				continue
			}
			n = min(n, int(behind))
			behind -= float64(n)
		}
		m, err := b.Send(p.client, 0, n, 0)
		if err != nil {
			pause() // ENOBUFS, or EAGAIN after the send timeout
		}
		sent += uint64(m)
	}
	return sent
}

// pause sleeps for as short a time as the kernel's timers allow, some 60 µs.
func pause() {
	unix.Nanosleep(&unix.Timespec{Nsec: 10_000}, nil)
}

// count receives until over and returns how many datagrams arrived.
func (p udpPair) count(size int, over *atomic.Bool) (received uint64) {
	b := mmsg.NewBatch(batchSize)
	for i := range batchSize {
		b.Set(i, make([]byte, size))
	}
	for {
		n, err := b.Recv(p.server, unix.MSG_WAITFORONE)
		received += uint64(n)
		if err != nil && over.Load() {
			return received
		}
	}
}
