package netlab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Impairment is what a Relay does to IPv4 and IPv6 frames; ARP passes. The
// fractions are between 0 and 1 and independent of each other.
type Impairment struct {
	Loss      float64 // fraction of frames that are lost
	Corrupt   float64 // fraction of frames that arrive with one bit flipped
	Mark      float64 // fraction of ECN-capable frames that arrive with congestion experienced (RFC 3168)
	Reorder   float64 // fraction of frames that are held back
	ReorderBy int     // number of later frames that overtake them; 3 if zero
	Seed      uint64  // of the random choices; each direction has its own sequence
}

// RelayStats counts frames, both directions together.
type RelayStats struct {
	Received, Dropped, Corrupted, Marked, Reordered uint64
	Overflowed                                      uint64 // lost because the relay or a receiver was too slow
}

// Relay is a switch in user space that impairs what it forwards. It needs an
// MTU wire: the socket it reads cannot describe every super-packet.
type Relay struct {
	ports     []*relayPort
	impair    atomic.Pointer[Impairment]
	received  atomic.Uint64
	dropped   atomic.Uint64
	corrupted atomic.Uint64
	marked    atomic.Uint64
	reordered atomic.Uint64
	overflow  atomic.Uint64
	stopFD    int // eventfd
	running   sync.WaitGroup
	close     func() error
}

// startRelay joins the hosts' ports in namespace wire.
func startRelay(wire *Namespace, hosts []*Host, mtu int, impair Impairment) (*Relay, error) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("start relay: eventfd: %w", err)
	}
	r := &Relay{stopFD: stop}
	r.close = sync.OnceValue(r.release)
	r.Set(impair)
	for i, h := range hosts {
		p, err := newRelayPort(r, wire, h, mtu, rand.New(rand.NewPCG(impair.Seed, uint64(i))))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start relay: port %s: %w", portName(h), err), r.Close())
		}
		r.ports = append(r.ports, p)
	}
	for _, p := range r.ports {
		r.running.Go(p.run)
	}
	return r, nil
}

// Set changes what the relay does from now on.
func (r *Relay) Set(impair Impairment) {
	if impair.ReorderBy == 0 {
		impair.ReorderBy = 3
	}
	r.impair.Store(&impair)
}

// Stats returns the counters since the relay was started.
func (r *Relay) Stats() RelayStats {
	return RelayStats{
		Received: r.received.Load(), Dropped: r.dropped.Load(), Corrupted: r.corrupted.Load(),
		Marked: r.marked.Load(), Reordered: r.reordered.Load(), Overflowed: r.overflow.Load(),
	}
}

// Close stops the relay and with it all traffic.
func (r *Relay) Close() error { return r.close() }

func (r *Relay) release() error {
	// Writing a nonzero number makes the eventfd permanently readable.
	_, err := unix.Write(r.stopFD, []byte{1, 0, 0, 0, 0, 0, 0, 1})
	r.running.Wait()
	for _, p := range r.ports {
		err = errors.Join(err, unix.Close(p.fd))
	}
	return errors.Join(err, unix.Close(r.stopFD))
}
