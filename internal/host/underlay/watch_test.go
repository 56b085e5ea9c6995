package underlay

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// told waits until a watcher tells of a change.
func told(t *testing.T, w *Watcher, what string) {
	t.Helper()
	select {
	case <-w.Changes():
	case <-time.After(testkit.Patience):
		t.Fatalf("%s: nothing told within %v", what, testkit.Patience)
	}
}

// watch makes a watcher in the namespace. What was changed before is not told.
func watch(n *namespaced) *Watcher {
	n.Helper()
	w, err := Watch()
	n.must("watch", err)
	n.Cleanup(w.Close)
	return w
}

func TestChangesOfInterfacesAreTold(t *testing.T) {
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
		// One of its own, so that what a step before it made happen later
		// cannot be taken for it.
		w, err := Watch()
		n.must("watch", err)
		n.must(step.what, step.change())
		told(t, w, step.what)
		w.Close()
	}
}

// A node on which pods come and go all the time is told as well, and not of
// each change.
func TestManyChangesAreToldTogetherAndInTime(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	w := watch(n)
	const times = 3
	changes, told, begin := 0, 0, time.Now()
	testkit.Eventually(n, "changes without end are told", func() bool {
		n.must("set MTU", netlink.LinkSetMTU(eth0, 1400+changes%2))
		changes++
		select {
		case <-w.Changes():
			told++
		default:
		}
		return told == times
	})
	// Nothing is told before it has been quiet for a while, or late.
	if took := time.Since(begin); took < times*settle {
		t.Errorf("told %d times of %d changes in %v", told, changes, took)
	}
}

func TestLostMessagesAreAChange(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	w := watch(n)
	n.must("make the buffer small", w.socket.SetReceiveBufferSize(2048, true))
	for i := range 1000 { // far more than there is room for, if nobody reads
		n.must("set MTU", netlink.LinkSetMTU(eth0, 1400+i%2))
	}
	told(t, w, "a thousand changes")
	for len(w.changes) > 0 {
		<-w.changes
	}
	n.must("set MTU", netlink.LinkSetMTU(eth0, 1300))
	told(t, w, "a change after messages were lost")
}

func TestWatcherEndsWhileItWaitsAndWhileNobodyListens(t *testing.T) {
	n := namespace(t)
	idle, err := Watch()
	n.must("watch", err)
	idle.Close()

	busy, err := Watch()
	n.must("watch", err)
	n.link("eth0", "192.0.2.1/24")
	told(t, busy, "a new link")
	n.link("eth1", "198.51.100.1/24")
	busy.Close()
}
