package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/netlab/mmsg"
)

const (
	// flows is how many flows datagrams are spread over, each with a thread
	// that sends and one that receives.
	flows = 2
	// batchSize is how many datagrams a sendmmsg or recvmmsg carries.
	batchSize = 32
	// settle is how long datagrams under way get to arrive.
	settle = 30 * time.Millisecond
	// tolerated is the loss below which a rate counts as carried.
	tolerated = 0.01
	// probes and probeTime bound the search for the highest rate.
	probes    = 6
	probeTime = 150 * time.Millisecond
	// retries is how often a rate that a longer run does not bear is lowered.
	retries = 4
)

// ipv4UDPHeaders is what stands before the payload in an IPv4 packet.
const ipv4UDPHeaders = 20 + 8

// datagrams is the load of UDP datagrams from client to server, at the highest
// rate at which less than one in a hundred is lost. payload is in bytes; zero
// is what fills the MTU.
func datagrams(payload int) func(context.Context, *Connection, time.Duration) (Figures, error) {
	return func(ctx context.Context, c *Connection, d time.Duration) (Figures, error) {
		size := payload
		if size == 0 {
			size = c.MTU - ipv4UDPHeaders
		}
		f, err := carriedRate(ctx, c, size, d)
		if err != nil {
			return nil, fmt.Errorf("UDP, %d bytes: %w", size, err)
		}
		bytes := float64(f.received) * float64(size)
		return Figures{
			packetRate.Key: f.rate() / 1e3,
			throughput.Key: 8 * bytes / 1e9 / f.elapsed.Seconds(),
			loss.Key:       100 * f.loss(),
			cpuPerGB.Key:   f.machine.Seconds() / (bytes / 1e9),
			cpuPerMpkt.Key: f.machine.Seconds() / (float64(f.received) / 1e6),
			daemonCPU.Key:  f.daemons.Seconds() / (bytes / 1e9),
		}, nil
	}
}

// carriedRate searches the highest rate with tolerable loss and runs it for d.
func carriedRate(ctx context.Context, c *Connection, size int, d time.Duration) (*flood, error) {
	// What arrives of a flood without limit is where to begin.
	f, err := runFlood(ctx, c, size, 0, probeTime)
	if err != nil {
		return nil, err
	}
	rate, carried, refused := f.rate(), 0.0, 0.0
	for range probes {
		if f, err = runFlood(ctx, c, size, rate, probeTime); err != nil {
			return nil, err
		}
		if f.loss() < tolerated {
			carried = rate
		} else {
			refused = rate
		}
		switch {
		case refused == 0:
			rate *= 1.2
		case carried == 0:
			rate *= 0.7
		default:
			rate = (carried + refused) / 2
		}
	}
	if carried == 0 {
		carried = rate
	}
	// A longer run meets more of the machine's hiccups than a probe.
	for try := 0; ; try++ {
		f, err = runFlood(ctx, c, size, carried, d)
		if err != nil || f.loss() < tolerated || try == retries {
			return f, err
		}
		carried *= 0.85
	}
}

// flood is what came of sending datagrams for a while.
type flood struct {
	sent, received uint64
	usage
}

// rate is in received datagrams a second.
func (f *flood) rate() float64 { return float64(f.received) / f.elapsed.Seconds() }

// loss is the fraction that did not arrive.
func (f *flood) loss() float64 { return max(0, 1-float64(f.received)/float64(f.sent)) }

// runFlood sends datagrams at rate, in datagrams a second over all flows, for
// d; rate zero is as fast as can be.
func runFlood(ctx context.Context, c *Connection, size int, rate float64, d time.Duration) (*flood, error) {
	var pairs []udpPair
	defer func() {
		for _, p := range pairs {
			p.close()
		}
	}()
	for range flows {
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
	var over atomic.Bool // nothing more will come
	var senders, receivers sync.WaitGroup
	for _, p := range pairs {
		receivers.Go(func() { received.Add(p.count(size, &over)) })
		senders.Go(func() { sent.Add(p.flood(ctx, size, rate/flows, d)) })
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
		return nil, errors.New("no datagram arrived")
	}
	return f, nil
}

// flood sends for d and returns how many datagrams the kernel took.
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
			// What a stall has put us behind by is not made up for in full:
			// that would be a flood without limit.
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

// pause sleeps for as short as the kernel's timers allow, some 60 µs.
func pause() {
	unix.Nanosleep(&unix.Timespec{Nsec: 10_000}, nil)
}

// count receives until over and returns how many datagrams came.
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
