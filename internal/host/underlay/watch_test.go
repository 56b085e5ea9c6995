package underlay

import (
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// reported waits for a report.
func reported(t *testing.T, changes <-chan struct{}, what string) {
	t.Helper()
	testkit.Receive(t, "a report of: "+what, changes)
}

func TestChangesOfInterfacesAreReported(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	for _, step := range []struct {
		what   string
		change func() error
	}{
		{"MTU", func() error { return netlink.LinkSetMTU(eth0, 1400) }},
		{"address added", func() error { n.addr(eth0, "192.0.2.2/24", nil); return nil }},
		{"IPv6 address added", func() error { n.addr(eth0, "2001:db8:1::1/64", nil); return nil }},
		{"address removed", func() error { remove(n, eth0, "192.0.2.2/24"); return nil }},
		{"down", func() error { return netlink.LinkSetDown(eth0) }},
		{"up", func() error { return netlink.LinkSetUp(eth0) }},
		{"gone", func() error { return netlink.LinkDel(eth0) }},
		{"back", func() error { n.link("eth0"); return nil }},
	} {
		// Each step has a watch of its own, so that a late effect of the step before
		// cannot be taken for it.
		changes, end, err := Watch()
		n.must("watch", err)
		n.must(step.what, step.change())
		reported(t, changes, step.what)
		end()
	}
}

// So it is on a node where pods come and go all the time.
func TestManyChangesAreReportedTogetherAndInTime(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	reports, end, err := Watch()
	n.must("watch", err)
	defer end()
	const times = 3
	changes, count, begin := 0, 0, time.Now()
	testkit.Eventually(n, "changes without end are reported", func() bool {
		n.must("set MTU", netlink.LinkSetMTU(eth0, 1400+changes%2))
		changes++
		select {
		case <-reports:
			count++
		default:
		}
		return count == times
	})
	// Nothing is reported before it has been quiet for a while, or late.
	if took := time.Since(begin); took < times*settle {
		t.Errorf("%d reports of %d changes in %v", count, changes, took)
	}
}

// missing is a source that has nothing but missed changes, and then none.
type missing struct {
	missed chan bool
	closed chan struct{}
}

func (m missing) Next(deadline time.Time) ([]syscall.NetlinkMessage, bool) {
	var timeout <-chan time.Time
	if !deadline.IsZero() {
		timeout = time.After(time.Until(deadline))
	}
	select {
	case <-m.missed:
		return nil, true
	case <-timeout:
	case <-m.closed:
	}
	return nil, false
}

func (m missing) Closed() bool {
	select {
	case <-m.closed:
		return true
	default:
		return false
	}
}

func TestMissedChangesAreReported(t *testing.T) {
	m := missing{make(chan bool), make(chan struct{})}
	reports, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		report(m, reports)
	}()
	for range 2 {
		m.missed <- true
		reported(t, reports, "missed changes")
	}
	close(m.closed)
	testkit.Receive(t, "the end", done)
}

func TestWatchEndsWhileItWaitsAndWhileNothingReads(t *testing.T) {
	n := namespace(t)
	_, end, err := Watch()
	n.must("watch", err)
	end()

	changes, end, err := Watch()
	n.must("watch", err)
	n.link("eth0", "192.0.2.1/24")
	reported(t, changes, "a new link")
	n.link("eth1", "198.51.100.1/24")
	end()
}
