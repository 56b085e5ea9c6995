package echo

import (
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

// TestPingsOfAnySizeAreAnswered: the kernel answers only a request whose checksum is
// right.
func TestPingsOfAnySizeAreAnswered(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	testkit.Must(t, a.NS.Do(func() error {
		for _, size := range []int{48, Smallest, 1001, 1500} {
			pings := []Ping{{b.Addr, size}, {b.Addr6, size}}
			got, err := Once(t.Context(), pings, testkit.Patience)
			if err != nil {
				return err
			}
			for _, p := range pings {
				if rtt, ok := got[p]; !ok || rtt <= 0 {
					t.Errorf("%v: answered %t, after %s", p, ok, rtt)
				}
			}
		}
		return nil
	}))
}

func TestHostThatDoesNotAnswerIsLeftOut(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	nobody := b.Addr.Next()
	testkit.Must(t, a.NS.Do(func() error {
		got, err := Answers(t.Context(), []Ping{{nobody, Smallest}, {b.Addr, 1500}, {b.Addr6, 1501}})
		if err == nil && (len(got) != 1 || !got[b.Addr]) {
			t.Errorf("answers of %v, want that of %s alone", got, b.Addr)
		}
		return err
	}))
}

func TestLargestPacketIsFoundToTheByte(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	testkit.Must(t, a.NS.Do(func() error {
		fits, err := Widest(t.Context(), []Ping{{b.Addr, 1600}})
		if err == nil && fits[b.Addr] != 1500 {
			t.Errorf("packets of %d bytes, want 1500", fits[b.Addr])
		}
		return err
	}))
}
