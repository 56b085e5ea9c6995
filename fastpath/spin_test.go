package fastpath

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// spinners returns n spinners of one shard, of which slots may spin at a time.
func spinners(n int, slots int32) []spinner {
	left, bulk := new(atomic.Int32), new(atomic.Int64)
	left.Store(slots)
	bulk.Store(int64(now() - time.Hour))
	s := make([]spinner, n)
	for i := range s {
		s[i] = spinner{bulk: bulk, slots: left}
	}
	return s
}

// spins passes a batch of n bytes to s, then lets it look in vain until it goes
// to sleep, and returns how long that took.
func spins(s *spinner, n int) time.Duration {
	from := now()
	for again := s.again(n); again; again = s.again(0) {
		testkit.Advance(time.Microsecond)
	}
	return now() - from
}

func TestSpinsForAWhileAfterASmallBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &spinners(1, 1)[0]
		if d := spins(s, 100); d < spinTime || d > spinTime+5*time.Microsecond {
			t.Errorf("looked for %v, want %v", d, spinTime)
		}
		if s.again(0) {
			t.Error("woken for nothing, it spins")
		}
	})
}

func TestSpinningGoesOnWhileItPaysOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &spinners(1, 1)[0]
		s.skips = 100
		for range 1000 {
			testkit.Advance(spinTime - time.Microsecond)
			if !s.again(100) {
				t.Fatal("sleeps although a packet arrived in time")
			}
		}
		if s.skips != 0 {
			t.Errorf("would skip %d sleeps after it has paid off", s.skips)
		}
	})
}

func TestVainSpinningBecomesRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &spinners(1, 1)[0]
		const batches = 10000
		var spent time.Duration
		for range batches {
			testkit.Advance(time.Second)
			spent += spins(s, 100)
		}
		if least, most := batches/(maxSpinSkips+1)*spinTime, (batches/(maxSpinSkips+1)+10)*(spinTime+2*time.Microsecond); spent < least || spent > most {
			t.Errorf("spent %v on %d batches with a second between them, want %v to %v", spent, batches, least, most)
		}
	})
}

func TestNoDirectionSpinsBesideABulkTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		both := spinners(2, 2)
		if both[0].again(spinBytes + 1) {
			t.Error("spins after a large batch")
		}
		if both[1].again(100) {
			t.Error("the other direction spins")
		}
		testkit.Advance(bulkTime)
		if !both[1].again(100) {
			t.Error("does not spin after the transfer")
		}
	})
}

func TestOnlySoManyThreadsSpin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		three := spinners(3, 2)
		for i, want := range []bool{true, true, false} {
			if got := three[i].again(100); got != want {
				t.Errorf("thread %d spins: %v, want %v", i+1, got, want)
			}
		}
		for three[0].again(0) {
			testkit.Advance(time.Microsecond)
		}
		if !three[2].again(100) {
			t.Error("does not spin when another has stopped")
		}
	})
}

func TestSlotsComeBackWhateverHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots = 3
		all := spinners(5, slots)
		random := rand.New(rand.NewPCG(1, 2))
		for range 100000 {
			s := &all[random.IntN(len(all))]
			s.again([]int{0, 0, 100, spinBytes, spinBytes + 1}[random.IntN(5)])
			if left := s.slots.Load(); left < 0 || left > slots {
				t.Fatalf("%d slots left of %d", left, slots)
			}
			testkit.Advance(time.Duration(random.IntN(int(spinTime))))
		}
		testkit.Advance(time.Second)
		for i := range all {
			all[i].again(0)
		}
		if left := all[0].slots.Load(); left != slots {
			t.Errorf("%d slots left of %d when all sleep", left, slots)
		}
	})
}

func TestTheZeroSpinnerNeverSpins(t *testing.T) {
	var s spinner
	for _, n := range []int{0, 1, spinBytes, 1 << 20} {
		if s.again(n) {
			t.Errorf("spins after %d bytes", n)
		}
	}
}
