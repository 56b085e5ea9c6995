// Package routes owns the node's routes to the pods of other nodes, whichever
// backend carries them.
//
// Each subnet of a peer has one route: in table main, with the kernel's default
// metric, as stock flannel's. A peer that moves from one backend to another is
// one RTM_NEWROUTE with NLM_F_REPLACE, so there is no moment without a route.
//
// A route to the same subnet in the same place that somebody else has made is
// replaced, as stock flannel does. Routes of another prefix length, metric or
// table are never touched.
package routes

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
	"github.com/twillnet/twill/internal/host/nlwatch"
)

// Route leads to the pods of a peer.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // the gateway; invalid: Dst is on the link of Dev
	Dev    int        // index of the device
	OnLink bool       // Via is on the link of Dev, whatever its addresses say
}

// batched is the route as nlbatch has it.
func (r Route) batched() nlbatch.Route {
	return nlbatch.Route{Dst: r.Dst, Via: r.Via, Dev: r.Dev, OnLink: r.OnLink}
}

// String writes the route as ip-route(8) does, with the index for the device.
func (r Route) String() string { return r.batched().String() }

// normal is the route as the kernel tells it.
func (r Route) normal() Route {
	r.Dst, r.Via = r.Dst.Masked(), r.Via.WithZone("")
	if r.Via.IsUnspecified() {
		r.Via = netip.Addr{}
	}
	return r
}

// Config says what a Table may do.
type Config struct {
	// Ours says whether a route that is there when the table is opened was made
	// by an earlier run or by stock flannel, so that it is removed if nobody
	// wants it. It is asked of unicast routes with one next hop that are of
	// protocol boot, as both make them; all others are somebody else's. Nil: of
	// none.
	Ours func(Route) bool
	// Networks are what the subnets of all pods lie in. Routes outside are
	// refused and not looked at.
	Networks []netip.Prefix
	Logger   *slog.Logger
}

// Table keeps the routes that are wanted in the kernel. Set, Run and Close may
// be called from different goroutines; Run must have returned before Close.
type Table struct {
	cfg    Config
	events *nlwatch.Watcher
	nl     *netlink.Handle // reads

	mu   sync.Mutex             // of all below
	conn *nlbatch.Conn          // writes
	want map[netip.Prefix]Route // nil before the first Set
	devs map[int]bool           // those of want
	have map[netip.Prefix]held
	// followed says that Run keeps have as the kernel is, as far as it is wanted.
	// If it does not run, have is out of date.
	followed bool
	fights   map[netip.Prefix]*fight
	told     told
	devices  map[int]device // for messages, as long as an apply lasts
}

// held is a route that is in the kernel as far as is known, and that this table
// or an earlier run has made or wanted.
type held struct {
	Route
	// foreign routes are right by chance. They are used, and left when they are
	// not wanted any more.
	foreign bool
}

// Open reads what routes there are, in the network namespace of the calling
// thread. It changes nothing.
func Open(cfg Config) (_ *Table, err error) {
	t := &Table{
		cfg: cfg, have: make(map[netip.Prefix]held), fights: make(map[netip.Prefix]*fight),
		devices: make(map[int]device), told: told{faults: make(map[netip.Prefix]string)},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.release())
		}
	}()
	// Before anything is read, so that no change is missed. That the kernel takes
	// the IPv4 routes of a device away when it goes down, or loses its last
	// address, is not told.
	t.events, err = nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	if t.conn, err = nlbatch.Dial(); err != nil {
		return nil, err
	}
	if t.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The kernel then leaves the other tables out (Linux 4.20).
	_ = t.nl.SetStrictCheck(true)
	found, err := t.read()
	if err != nil {
		return nil, err
	}
	for dst, routes := range found {
		i := slices.IndexFunc(routes, func(f foundRoute) bool {
			return f.plain && f.protocol == unix.RTPROT_BOOT && cfg.Ours != nil && cfg.Ours(f.Route)
		})
		if i >= 0 {
			t.have[dst] = held{Route: routes[i].Route}
		}
	}
	return t, nil
}

// Close ends the work of the table. With remove it takes out the routes that it
// or an earlier run has made; without, they stay and carry traffic on.
func (t *Table) Close(remove bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if remove {
		t.want = nil
		if o, e := t.apply(false); e != nil {
			err = e
		} else {
			err = failed(o.failures)
		}
	}
	return errors.Join(err, t.release())
}

// release closes the sockets that are open.
func (t *Table) release() (err error) {
	if t.events != nil {
		t.events.Close()
	}
	if t.nl != nil {
		t.nl.Close()
	}
	if t.conn != nil {
		err = t.conn.Close()
	}
	return err
}

// inside reports whether p lies in one of the networks.
func (t *Table) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(t.cfg.Networks, func(n netip.Prefix) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

// earlier returns the earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
