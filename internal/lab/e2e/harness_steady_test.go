package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// steadyFlow is a flow of numbered datagrams at an even pace, of which not one
// may be lost, doubled or late. Where the machine is too busy for the pace the
// flow waits, since a queue that overflows is no fault of what is tested.
type steadyFlow struct {
	name     string
	from, to *net.UDPConn
	sent     atomic.Uint64
	received atomic.Uint64
	broken   atomic.Pointer[error] // why no more are received
	end      chan struct{}
	sender   chan error
	receiver chan error
}

const (
	steadyPace = time.Millisecond
	steadyStep = 4  // datagrams at each pace
	steadyMost = 32 // under way
	steadySize = 1200
)

// lastDatagram is the number of the datagram that ends a flow.
const lastDatagram = 1<<64 - 1

// startSteadyFlow starts a flow that lasts until it is stopped.
func startSteadyFlow(t testing.TB, from, to *netlab.Pod, addr netip.Addr) *steadyFlow {
	t.Helper()
	s := &steadyFlow{
		name: fmt.Sprintf("steady flow from %s to %s", ofFamily(from, addr), addr),
		end:  make(chan struct{}), sender: make(chan error, 1), receiver: make(chan error, 1),
	}
	var err error
	if s.to, err = listenUDP(to.NS, netip.AddrPortFrom(addr, 0)); err != nil {
		t.Fatal(err)
	}
	if s.from, err = dialUDP(from.NS, addrPort(s.to)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.from.Close()
		s.to.Close()
	})
	if err := acquaint(from, addr); err != nil {
		t.Fatal(err)
	}
	go func() { s.sender <- s.send() }()
	go func() {
		err := s.receive()
		if err != nil {
			s.broken.Store(&err)
		}
		s.receiver <- err
	}()
	return s
}

func (s *steadyFlow) write(number uint64) error {
	_, err := s.from.Write(binary.BigEndian.AppendUint64(make([]byte, 0, steadySize), number)[:steadySize])
	return err
}

// send runs on one CPU: the kernel queues what a veth pair delivers for each CPU, so
// that a datagram from another CPU could overtake those that wait. The thread ends
// with the goroutine.
func (s *steadyFlow) send() error {
	runtime.LockOSThread()
	var cpus unix.CPUSet
	if err := unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	first := 0
	for !cpus.IsSet(first) {
		first++
	}
	cpus.Zero()
	cpus.Set(first)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return err
	}
	pace := time.NewTicker(steadyPace)
	defer pace.Stop()
	for {
		select {
		case <-s.end:
			return nil
		case <-pace.C:
		}
		for range steadyStep {
			if s.sent.Load()-s.received.Load() == steadyMost {
				break
			}
			if err := s.write(s.sent.Load()); err != nil {
				return err
			}
			s.sent.Add(1)
		}
	}
}

func (s *steadyFlow) receive() error {
	buf := make([]byte, steadySize+1)
	for {
		n, err := s.to.Read(buf)
		if err != nil {
			return fmt.Errorf("%d of %d datagrams received: %w", s.received.Load(), s.sent.Load(), err)
		}
		got, want := binary.BigEndian.Uint64(buf), s.received.Load()
		switch {
		case n != steadySize:
			return fmt.Errorf("datagram %d has %d bytes", got, n)
		case got == lastDatagram && want == s.sent.Load():
			return nil
		case got != want:
			return fmt.Errorf("datagram %d arrives where %d is expected; %d sent", got, want, s.sent.Load())
		default:
			s.received.Add(1)
		}
	}
}

// stop ends the flow. It returns an error unless each datagram that was sent
// has arrived, in order.
func (s *steadyFlow) stop() error {
	close(s.end)
	err := <-s.sender
	werr := s.write(lastDatagram)
	_ = s.to.SetReadDeadline(time.Now().Add(testkit.Patience))
	return errors.Join(err, werr, <-s.receiver)
}
