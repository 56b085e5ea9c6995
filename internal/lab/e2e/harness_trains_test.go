package e2e

import (
	"fmt"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// batches counts calls of the kernel of one kind. A call that moved more than
// one packet moved a train.
type batches struct{ calls, trains float64 }

// batchesOf reads a histogram of /metrics, in one direction.
func batchesOf(t testing.TB, page, metric, direction string) batches {
	t.Helper()
	label := `direction="` + direction + `"`
	calls := sum(t, page, metric+"_count", label)
	return batches{calls, calls - sum(t, page, metric+"_bucket", label, `le="1"`)}
}

func (b batches) minus(before batches) batches {
	return batches{b.calls - before.calls, b.trains - before.trains}
}

// size is what is expected of the batches at a place. How many packets there are
// for a call to move depends on how the machine schedules; that a call can move
// more than one depends on the offload alone.
type size string

const (
	single size = "single packets" // never a train
	trains size = "trains"         // a train, sooner or later
	either size = "either"
)

// met reports whether what must come sooner or later has come.
func (s size) met(b batches) bool { return s != trains || b.trains > 0 }

// broken reports whether there is what must never be.
func (s size) broken(b batches) bool { return s == single && b.trains > 0 }

// places are the calls in which an offload can be in force, on the way of a
// packet from host a to host b.
type places [4]batches

var placeNames = [len(places{})]string{
	"reads of a's TUN device (TSO, USO)", "messages sent by a (GSO)",
	"messages received by b (GRO)", "writes of b's TUN device",
}

// places reads what host a has sent and host b has received since they started.
func (l *lab) places() places {
	l.t.Helper()
	a, b := l.metrics(0), l.metrics(1)
	return places{
		batchesOf(l.t, a, "twill_tun_batch_packets", "tx"), batchesOf(l.t, a, "twill_datagram_packets", "tx"),
		batchesOf(l.t, b, "twill_datagram_packets", "rx"), batchesOf(l.t, b, "twill_tun_batch_packets", "rx"),
	}
}

// expectTrains runs load, which sends from host a to host b, until the batches at
// every place are of the size wanted and until holds, and checks that there was
// none of another size.
func (l *lab) expectTrains(t *testing.T, want [len(places{})]size, load func() error, until func() bool) {
	t.Helper()
	before := l.places()
	var got places
	testkit.Eventually(t, fmt.Sprintf("%s at the four places", want), func() bool {
		if err := load(); err != nil {
			t.Fatal(err)
		}
		got = l.places()
		met := until()
		for i := range got {
			got[i] = got[i].minus(before[i])
			met = met && want[i].met(got[i])
		}
		return met
	}, func() string { return fmt.Sprintf("calls and trains: %.0f", got) })
	for i, b := range got {
		if want[i].broken(b) {
			t.Errorf("%s: %.0f of %.0f moved trains, want %s", placeNames[i], b.trains, b.calls, want[i])
		}
	}
}

// directions adds up the shards.
func directions(d *status.Document) (tx, rx status.Direction) {
	for _, s := range d.Shards {
		for _, sum := range []struct{ to, from *status.Direction }{{&tx, &s.TX}, {&rx, &s.RX}} {
			sum.to.Packets += sum.from.Packets
			sum.to.Datagrams += sum.from.Datagrams
			sum.to.TunCalls += sum.from.TunCalls
		}
	}
	return tx, rx
}

// metricsFlag turns on the page that metrics fetches.
const metricsFlag = "--healthz-port=9100"
