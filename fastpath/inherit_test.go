package fastpath

import (
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/tun"
)

// copiesOf returns duplicates of descriptors, as another process has them.
func copiesOf(t *testing.T, fds map[string]int) map[string]int {
	t.Helper()
	all := make(map[string]int)
	for name, fd := range fds {
		copied, err := unix.Dup(fd)
		testkit.Must(t, err)
		all[name] = copied
	}
	return all
}

// While one engine takes over the sockets of another, the other one keeps receiving.
// A train that it reads without UDP_GRO on the socket looks like one long datagram and is
// lost.
func TestTakingOverSocketsLeavesThemReceivingTrains(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		cfg := config(device(t, 2, tun.Auto), "127.0.0.1:8285")
		first := newEngine(t, cfg)
		var (
			done     atomic.Bool
			switched = make(chan int, 1)
			fd       = first.shards[0].fd
		)
		if got, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO); err != nil || got != 1 {
			t.Fatalf("UDP_GRO %d (%v)", got, err)
		}
		go func() {
			off := 0
			for !done.Load() {
				if got, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO); err == nil && got == 0 {
					off++
				}
			}
			switched <- off
		}()
		for range 5 {
			cfg.Inherited = copiesOf(t, first.Descriptors())
			newEngine(t, cfg).Close()
		}
		done.Store(true)
		if off := <-switched; off > 0 {
			t.Errorf("UDP_GRO was seen off %d times", off)
		}

		cfg.UDPGRO, cfg.Inherited = tun.Off, copiesOf(t, first.Descriptors())
		second := newEngine(t, cfg)
		if got, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO); err != nil || got != 1 {
			t.Errorf("UDP_GRO %d (%v) before the second engine runs", got, err)
		}
		testkit.Must(t, start(t, second)())
		if got, err := unix.GetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO); err != nil || got != 0 {
			t.Errorf("UDP_GRO %d (%v) with --udp-gro=off", got, err)
		}
	})
}

// With --udp-gro=off the new process finds trains that arrived before it turned UDP_GRO off.
func TestTrainsThatWaitedForATakeoverArrive(t *testing.T) {
	for name, pkts := range map[string][][]byte{
		"TCP": tcpTrain(10, 1400, 700), "UDP": udpTrain(10, 1200, 3), "one packet": udpTrain(1, 9, 9),
	} {
		q := new(fakeQueue)
		r := newTestRX(q)
		bare := train(pkts)
		bare.segment = 0
		r.bareTrains = true
		arrive(t, r, bare)
		testkit.Must(t, r.write())
		t.Run(name, func(t *testing.T) { samePackets(t, q.packets(t), pkts) })
	}
	for _, b := range [][]byte{{}, {0x45}, make([]byte, 100), append([]byte{0x45, 0, 0, 1}, make([]byte, 96)...), append([]byte{0x60}, make([]byte, 99)...)} {
		if n := ipLength(b); n < 1 || len(b) > 0 && n > len(b) {
			t.Errorf("% x: %d bytes", b, n)
		}
	}
}

// What Run does before it forwards is time in which packets wait, in a takeover.
func TestBuffersAreAllocatedBeforeAnEngineRuns(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		e := newEngine(t, config(device(t, 2, tun.Auto), "127.0.0.1:8285"))
		sleeps := func() (n uint64) {
			for _, c := range e.Counters() {
				n += c.TX.Sleeps.Load() + c.RX.Sleeps.Load()
			}
			return n
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		stop := start(t, e)
		testkit.Eventually(t, "the engine waits for packets", func() bool { return sleeps() > 0 })
		runtime.ReadMemStats(&after)
		testkit.Must(t, stop())
		if n := after.TotalAlloc - before.TotalAlloc; n >= uint64(smallFootprint.txArena) {
			t.Errorf("Run has allocated %d bytes", n)
		}
	})
}
