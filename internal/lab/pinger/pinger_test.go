package pinger

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

func TestEachAnswerIsRecordedAndWhatIsLostIsCounted(t *testing.T) {
	netlabtest.Root(t)
	for _, addr := range []string{"127.0.0.1", "::1"} {
		ns := netlabtest.Namespace(t, "a")
		var p *Pinger
		testkit.Must(t, ns.Do(func() (err error) {
			p, err = Start(netip.MustParseAddr(addr), time.Millisecond)
			return err
		}))
		sent := func(n int) {
			t.Helper()
			from := p.Sent()
			testkit.Eventually(t, "more requests are sent", func() bool { return p.Sent() >= from+n })
		}
		answered := func() int { return p.Sent() - p.Missing() }
		sent(20)
		testkit.Eventually(t, "an answer", func() bool { return answered() > 0 })
		nl := ns.Netlink()
		lo, err := nl.LinkByName("lo")
		testkit.Must(t, err, nl.LinkSetDown(lo))
		sent(20)
		testkit.Must(t, nl.LinkSetUp(lo))
		before := answered()
		testkit.Eventually(t, "answers again", func() bool { return answered() > before+20 })
		r, err := p.Stop(0)
		if err != nil {
			t.Error(err)
		}
		if lost := r.Lost(); lost < 20 || lost == len(r) || len(r) != p.Sent() {
			t.Errorf("%s: %s; want 20 lost at least, not all", addr, r)
		}
		if r.Silence() < 15*time.Millisecond {
			t.Errorf("%s: longest silence %s, want the time of 20 requests", addr, r.Silence())
		}
	}
}

func TestSilenceIsTheLongestTimeBetweenTwoAnswers(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	r := Record{
		{at(0), at(1)}, {at(1), at(2)},
		{at(2), at(30)}, {at(3), at(29)}, // waited, and came in another order
		{at(4), time.Time{}},
		{at(40), at(41)}, {at(60), time.Time{}},
	}
	if r.Lost() != 2 || r.Silence() != 27*time.Millisecond || r.Pause() != 36*time.Millisecond {
		t.Errorf("%s", r)
	}
	if none := Record(nil); none.Lost() != 0 || none.Silence() != 0 || none.Pause() != 0 {
		t.Errorf("nothing sent: %s", none)
	}
	path := filepath.Join(t.TempDir(), "pings")
	testkit.Must(t, r.WriteFile(path))
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	lines := strings.Split(string(text), "\n")
	if len(lines) != len(r)+1 || lines[0] != "0 00:00:00.000000 1000" || lines[4] != "4 00:00:00.004000 lost" {
		t.Errorf("%q", lines)
	}
}
