package keep

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// The tests here need no privileges. The kernel is a script: it notes each request and
// carries it out, except those that are to fail. What the kernel really does with such
// requests is shown by the tests in namespaces.

// scripted is a Keeper of a node with flannel.1, which is device 7. Its underlay is
// device 1, the loopback.
type scripted struct {
	*testing.T
	*Keeper
	refuses  map[string]error // by a part of the request
	requests []string
}

func newScripted(t *testing.T) *scripted {
	t.Helper()
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	k := &Keeper{
		cfg: cluster(5).config(""), nl: nl, followed: true,
		devices: map[string]*device{"flannel.1": {Link: Link{Name: "flannel.1", VXLAN: &VXLAN{}}, index: 7}},
		paces:   make(map[any]*pace), said: newSaid(), linkStates: make(map[int]linkState),
	}
	k.cfg.Logger = slog.New(slog.DiscardHandler)
	k.networks = currentNetworks(k.cfg)
	k.have = tables{fdb: map[fdbKey]netip.Addr{}, neighs: map[neighKey]MAC{}, ours: map[fdbKey]bool{}, routes: map[routeKey]held{}}
	s := &scripted{T: t, Keeper: k, refuses: map[string]error{}}
	k.send = s.carryOut
	return s
}

func (s *scripted) carryOut(requests []nlbatch.Request) ([]error, error) {
	errs := make([]error, len(requests))
	for i, r := range requests {
		s.requests = append(s.requests, r.String())
		for part, err := range s.refuses {
			if strings.Contains(r.String(), part) {
				errs[i] = err
			}
		}
	}
	return errs, nil
}

// wants makes the kernel have the state, and returns the requests for that.
func (s *scripted) wants(state State) (requests []string, o outcome) {
	s.Helper()
	w := s.compile(state)
	s.forgetPaces(w)
	s.want = w
	return s.applies(false)
}

func (s *scripted) applies(restoring bool) (requests []string, o outcome) {
	s.Helper()
	s.requests, s.dirty = nil, 0 // have is what the script has
	o, err := s.apply(restoring)
	if err != nil {
		s.Fatal(err)
	}
	return s.requests, o
}

func (s *scripted) equal(what string, got []string, want ...string) {
	s.Helper()
	if !slices.Equal(got, want) {
		s.Errorf("%s: got\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// tunnelTo is what leads to peer i of the cluster through flannel.1.
func tunnelTo(i int) State {
	mac, subnet := MAC{2, 0, 0, 0, 0, byte(i)}, cluster(5).subnet(i)
	return State{
		FDB:    []FDB{{Dev: "flannel.1", MAC: mac, Dst: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}},
		Neighs: []Neigh{{Dev: "flannel.1", IP: subnet.Addr(), MAC: mac}},
		Routes: []Route{{Dst: subnet, Via: subnet.Addr(), Dev: "flannel.1", OnLink: true}},
	}
}

func both(a, b State) State {
	return State{FDB: append(a.FDB, b.FDB...), Neighs: append(a.Neighs, b.Neighs...), Routes: append(a.Routes, b.Routes...)}
}

func TestPeerIsKnownToTheDeviceBeforeTheRouteLeadsThere(t *testing.T) {
	s := newScripted(t)
	got, _ := s.wants(both(tunnelTo(2), tunnelTo(3)))
	s.equal("two peers", got,
		"replace FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.2",
		"replace FDB entry 02:00:00:00:00:03 dev 7 dst 192.0.2.3",
		"replace neighbour 10.5.2.0 dev 7 lladdr 02:00:00:00:00:02",
		"replace neighbour 10.5.3.0 dev 7 lladdr 02:00:00:00:00:03",
		"add route 10.5.2.0/24 via 10.5.2.0 dev 7 onlink",
		"add route 10.5.3.0/24 via 10.5.3.0 dev 7 onlink")
	got, _ = s.wants(both(tunnelTo(2), tunnelTo(3)))
	s.equal("the same again", got)
	got, _ = s.wants(tunnelTo(2))
	s.equal("one of them leaves", got,
		"delete route 10.5.3.0/24 via 10.5.3.0 dev 7 onlink",
		"delete FDB entry 02:00:00:00:00:03 dev 7 dst 192.0.2.3",
		"delete neighbour 10.5.3.0 dev 7 lladdr 02:00:00:00:00:03")
}

func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	s := newScripted(t)
	state := tunnelTo(2)
	s.wants(state)
	state.FDB[0].Dst = netip.MustParseAddr("192.0.2.22")
	got, _ := s.wants(state)
	s.equal("another address of the node", got, "replace FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.22")
	state.FDB[0].MAC[5], state.Neighs[0].MAC[5] = 9, 9
	got, _ = s.wants(state)
	s.equal("another device of the node", got,
		"replace FDB entry 02:00:00:00:00:09 dev 7 dst 192.0.2.22",
		"replace neighbour 10.5.2.0 dev 7 lladdr 02:00:00:00:00:09",
		"delete FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.22")
	plain := State{Routes: []Route{{Dst: cluster(5).subnet(2), Via: netip.MustParseAddr("192.0.2.22"), Dev: "lo"}}}
	got, _ = s.wants(plain)
	s.equal("from the tunnel to a plain route", got,
		"replace route 10.5.2.0/24 via 192.0.2.22 dev 1",
		"delete FDB entry 02:00:00:00:00:09 dev 7 dst 192.0.2.22",
		"delete neighbour 10.5.2.0 dev 7 lladdr 02:00:00:00:00:09")
	got, _ = s.wants(tunnelTo(2))
	s.equal("and back", got,
		"replace FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.2",
		"replace neighbour 10.5.2.0 dev 7 lladdr 02:00:00:00:00:02",
		"replace route 10.5.2.0/24 via 10.5.2.0 dev 7 onlink")
}

func TestNothingIsWrittenThatDependsOnAFailure(t *testing.T) {
	for refused, want := range map[string][]string{
		"FDB entry 02:00:00:00:00:02": {
			"replace FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.2",
		},
		"neighbour 10.5.2.0": {
			"replace FDB entry 02:00:00:00:00:02 dev 7 dst 192.0.2.2",
			"replace neighbour 10.5.2.0 dev 7 lladdr 02:00:00:00:00:02",
		},
	} {
		s := newScripted(t)
		s.refuses[refused] = unix.ENOBUFS
		got, o := s.wants(tunnelTo(2))
		s.equal(refused, got, want...)
		if len(o.failures) != 1 || !errors.Is(o.failures[0].err, unix.ENOBUFS) {
			t.Errorf("%s: failures %v", refused, o.failures)
		}
		// Once it can be written, all that depends on it follows.
		clear(s.refuses)
		if got, o = s.wants(tunnelTo(2)); len(o.failures) > 0 || len(s.have.routes) != 1 {
			t.Errorf("%s: then %v, failures %v", refused, got, o.failures)
		}
	}
}

func TestWhatAnotherProgramKeepsRemovingIsLeftAloneForAWhile(t *testing.T) {
	s := newScripted(t)
	s.wants(tunnelTo(2))
	key := routeKey{dst: cluster(5).subnet(2)}
	const write = "add route 10.5.2.0/24 via 10.5.2.0 dev 7 onlink"
	remove := func() { delete(s.have.routes, key) }

	remove()
	got, _ := s.applies(true)
	s.equal("removed once", got, write)
	remove()
	s.paces[key].last = time.Now().Add(time.Hour) // however slow the machine is
	got, o := s.applies(true)
	s.equal("removed again at once", got)
	if rest := s.paces[key]; o.due != rest.last.Add(rest.rest) || len(o.failures) > 0 {
		t.Errorf("due at %v, want %v after %v; failures %v", o.due, rest.rest, rest.last, o.failures)
	}
	s.paces[key].last = time.Now().Add(-s.paces[key].rest)
	got, _ = s.applies(true)
	s.equal("after the rest", got, write)
	if rest := s.paces[key].rest; rest != 2*firstRest {
		t.Errorf("the next rest is %v, want %v", rest, 2*firstRest)
	}
	// A state that differs is not kept waiting.
	remove()
	changed := tunnelTo(2)
	changed.Routes[0].Via = cluster(5).subnet(2).Addr().Next()
	got, _ = s.wants(changed)
	s.equal("another gateway", got, "add route 10.5.2.0/24 via 10.5.2.1 dev 7 onlink")
}
