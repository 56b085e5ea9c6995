package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
	"github.com/twillnet/twill/internal/host/nlwatch"
)

// ErrDeviceGone reports that a device was deleted, or that another program
// recreated it or changed it incompatibly. A new Keeper creates it again.
var ErrDeviceGone = errors.New("device is gone")

// Config defines what a Keeper may change.
type Config struct {
	// Networks are those of the cluster; what lies outside them is left alone.
	// Subnets are those of this node, at most one in each network.
	Networks, Subnets []netip.Prefix
	// Owned matches the names of VXLAN devices that earlier runs may have left.
	Owned *regexp.Regexp
	// Record is the file that lists, across runs, other objects added to this
	// host.
	Record string
	Logger *slog.Logger
}

// Keeper keeps a State in the kernel. Its methods are safe for concurrent use,
// and all except Run and Idle must be called in the network namespace of
// Open. Run must have returned before Close.
type Keeper struct {
	cfg Config

	// All sockets are in the network namespace of Open.
	events     *nlwatch.Watcher
	nl         *netlink.Handle
	neighbours *netlink.Handle // without strict checking: see Open
	requests   nl.SocketHandle // for requests that package netlink does not support

	mu       sync.Mutex // guards the fields below
	conn     *nlbatch.Conn
	send     func([]nlbatch.Request) ([]error, error) // conn.Do, or a script in tests
	record   *record
	networks []network // those of Config, and those of earlier runs
	devices  map[string]*device
	want     *wanted // nil before the first Set
	have     tables
	claimed  map[Route]bool // see Claim
	dirty    kinds          // the kinds for which have may differ from the kernel's state
	followed bool           // Run is active and sets dirty; otherwise everything is dirty
	retired  bool           // devices of earlier runs have been removed
	paces    map[any]*pace
	said     said
	// linkStates caches device states for messages during one apply.
	linkStates map[int]linkState
}

// kinds is a set of kinds of objects.
type kinds uint8

const (
	links kinds = 1 << iota
	entries
	routes
	everything = links | entries | routes
)

// Open opens a Keeper in the network namespace of the calling thread. It
// changes nothing.
func Open(cfg Config) (_ *Keeper, err error) {
	k := &Keeper{
		cfg: cfg, devices: make(map[string]*device), dirty: everything,
		paces: make(map[any]*pace), said: newSaid(), linkStates: make(map[int]linkState),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
		}
	}()
	// Subscribe before anything is read, so that no change is missed.
	k.events, err = nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	if k.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// With strict checking, dumps leave out the other tables (Linux 4.20).
	_ = k.nl.SetStrictCheck(true)
	// Strict checking may refuse the library's dumps of neighbours with EINVAL, because
	// their padding is not cleared and holds leftovers of the stack
	// (valid_fdb_dump_strict in net/core/rtnetlink.c).
	if k.neighbours, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if k.requests.Socket, err = nl.Subscribe(unix.NETLINK_ROUTE); err != nil { // subscribes to no group
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if k.conn, err = nlbatch.Dial(); err != nil {
		return nil, err
	}
	k.send = k.conn.Do
	if k.record, err = openRecord(cfg.Record); err != nil {
		return nil, err
	}
	for _, n := range append(currentNetworks(cfg), k.record.networks...) {
		if !slices.Contains(k.networks, n) {
			k.networks = append(k.networks, n)
		}
	}
	return k, nil
}

// Close closes the Keeper. The objects in the kernel stay and carry traffic.
func (k *Keeper) Close() (err error) {
	if k.events != nil {
		k.events.Close()
	}
	if k.neighbours != nil {
		k.neighbours.Close()
	}
	if k.nl != nil {
		k.nl.Close()
	}
	if k.requests.Socket != nil {
		k.requests.Socket.Close()
	}
	if k.conn != nil {
		err = k.conn.Close()
	}
	return err
}

// Claim makes the first Set treat these plain routes and blackholes, if they exist,
// as made by an earlier run.
func (k *Keeper) Claim(all []Route) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claimed = make(map[Route]bool, len(all))
	for _, r := range all {
		k.claimed[r] = true
	}
}

// Ensure creates the devices, or takes over existing ones, and corrects
// settings that differ. A VXLAN device that cannot be changed into the wanted
// one is replaced. Ensure fails at the first device that cannot be set up; it
// then deletes those that it created.
func (k *Keeper) Ensure(all ...Link) (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var made []*device
	defer func() {
		if err == nil {
			return
		}
		for _, l := range all {
			delete(k.devices, l.Name)
		}
		for _, d := range made {
			err = errors.Join(err, k.deleteLink(d.index, d.Name))
		}
	}()
	if err := k.makeRoom(all); err != nil {
		return err
	}
	for _, l := range all {
		d, isNew, err := k.find(l)
		if isNew {
			made = append(made, d)
		}
		if err != nil {
			return err
		}
		k.devices[l.Name] = d
		var o outcome
		if err := k.begin(false, &o).applyLink(d); err != nil {
			return err
		}
		if len(o.failures) > 0 {
			return o.failures[0].err
		}
	}
	return nil
}

// Run restores what other programs remove or change, as the kernel announces
// the changes, until ctx is done; the error is nil then. It returns an error
// that wraps ErrDeviceGone if a device is gone. It may be called once. It
// begins by restoring what was changed before the call.
//
// Objects that are removed repeatedly are restored at increasing intervals.
func (k *Keeper) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, k.events.Close)() // wakes Next
	k.follow(true)
	defer k.follow(false)
	l := listener{up: make(map[int]bool), due: time.Now()}
	for ctx.Err() == nil {
		if !l.due.IsZero() && !time.Now().Before(l.due) {
			due, err := k.look()
			if err != nil {
				return err
			}
			l.due, l.last = due, time.Now()
		}
		messages, missed := k.events.Next(l.due)
		if err := k.hear(&l, messages, missed); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keeper) follow(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.followed, k.dirty = on, everything
}

// retryAfter is the delay before failed writes are retried, unless a change
// triggers a retry earlier.
const retryAfter = 5 * time.Second

// look restores what differs from the wanted state, and returns when to look
// again even without a notification; zero means never. The error reports that a
// device is gone.
func (k *Keeper) look() (due time.Time, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o, err := k.apply(true)
	if errors.Is(err, ErrDeviceGone) {
		return due, err
	}
	k.report(o, err, true)
	if err != nil || len(o.failures) > 0 {
		k.dirty = everything
		return earlier(o.due, time.Now().Add(retryAfter)), nil
	}
	return o.due, nil
}

// network is a network of pods in which each node has a subnet.
type network struct {
	netip.Prefix
	subnetBits int // prefix length of a subnet
}

// currentNetworks returns the networks of cfg.
func currentNetworks(cfg Config) (all []network) {
	for _, n := range cfg.Networks {
		for _, s := range cfg.Subnets {
			if s.Addr().Is4() == n.Addr().Is4() {
				all = append(all, network{n.Masked(), s.Bits()})
			}
		}
	}
	return all
}

// inside reports whether p lies in a network of this or an earlier run.
func (k *Keeper) inside(p netip.Prefix) bool {
	return slices.ContainsFunc(k.networks, func(n network) bool {
		return n.Bits() <= p.Bits() && n.Contains(p.Addr())
	})
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
