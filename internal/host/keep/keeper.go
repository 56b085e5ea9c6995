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

// ErrDeviceGone reports a device that was deleted, or that is another one now:
// made again or changed by another program. It takes a new Keeper to have it
// back.
var ErrDeviceGone = errors.New("device is gone")

// Config says what a Keeper may touch.
type Config struct {
	// Networks are those of the cluster, what lies outside is left alone; Subnets
	// are those of this node, one in each network at most.
	Networks, Subnets []netip.Prefix
	// Owned matches the names of VXLAN devices that earlier runs may have left.
	Owned *regexp.Regexp
	// Record is the file that says, across runs, what else this host was given.
	Record string
	Logger *slog.Logger
}

// Keeper keeps a State in the kernel. Its methods may be called from different
// goroutines, all but Run and Status in the network namespace of Open; Run must
// have returned before Close.
type Keeper struct {
	cfg Config

	// All sockets are in one network namespace.
	events   *nlwatch.Watcher
	nl       *netlink.Handle
	requests nl.SocketHandle // for requests that netlink has no words for

	mu       sync.Mutex // guards all below
	conn     *nlbatch.Conn
	record   *record
	networks []network // those of Config, and of earlier runs
	devices  map[string]*device
	want     *wanted // nil before the first Set
	have     tables
	claimed  map[Route]bool // see Claim
	dirty    kinds          // what of have may not be as the kernel is
	followed bool           // Run marks what is dirty; or else all is
	retired  bool           // what earlier runs have left is gone
	paces    map[any]*pace
	said     said
	// linkStates are for messages, as long as an apply lasts.
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

// Open opens a Keeper in the network namespace of the calling thread. It changes
// nothing.
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
	// Before anything is read, so that no change is missed.
	k.events, err = nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return nil, err
	}
	if k.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// The kernel then leaves the other tables out of dumps (Linux 4.20).
	_ = k.nl.SetStrictCheck(true)
	if k.requests.Socket, err = nl.Subscribe(unix.NETLINK_ROUTE); err != nil { // to nothing
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if k.conn, err = nlbatch.Dial(); err != nil {
		return nil, err
	}
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

// Close ends the work of the Keeper. What it has made stays and carries traffic
// on.
func (k *Keeper) Close() (err error) {
	if k.events != nil {
		k.events.Close()
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

// Claim makes the first Set treat these plain routes, where they are found, as
// made by an earlier run.
func (k *Keeper) Claim(all []Route) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claimed = make(map[Route]bool, len(all))
	for _, r := range all {
		k.claimed[r] = true
	}
}

// Ensure makes the devices, or takes over those that are there, and sets what is
// not as wanted of them. A VXLAN device that cannot be changed into the wanted
// one is replaced. It fails with the first that cannot be had; those that it made
// are gone then.
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

// Set makes the kernel have s, and removes what an earlier State or an earlier run
// has made and s does not list. What cannot be done is logged, once; the rest is
// done. ok reports that all was done. What was not, Run tries again.
func (k *Keeper) Set(s State) (ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.want == nil
	devices := k.adopt(s.Links)
	w := k.compile(s)
	k.forgetPaces(w)
	k.want = w
	if !k.followed || first {
		k.dirty = everything
	}
	// Before anything is made, or else a run that is killed leaves what the next
	// one does not know.
	unlisted := k.record.add(k.recorded(s), s.Routes)
	o, err := k.apply(false)
	o.failures = append(o.failures, devices...)
	if err == nil {
		k.retire(&o)
		unlisted = errors.Join(unlisted, k.trimRecord(s, len(o.failures) == 0))
	}
	if unlisted != nil {
		o.fail(recordKey{}, unlisted)
	}
	k.report(o, err, false)
	return err == nil && len(o.failures) == 0
}

// adopt makes the links the kept devices. Those that Ensure has had only take over
// what is new of them.
func (k *Keeper) adopt(all []Link) (failures []failure) {
	devices := make(map[string]*device, len(all))
	for _, l := range all {
		d, ok := k.devices[l.Name]
		if !ok {
			var err error
			if d, _, err = k.find(l); err != nil {
				failures = append(failures, failure{linkKey{l.Name, ""}, err})
				continue
			}
		}
		if !ok || !d.Link.equal(l) {
			k.dirty |= links
		}
		d.Link = l
		devices[l.Name] = d
	}
	k.devices = devices
	return failures
}

// outcome is what came of an apply.
type outcome struct {
	restored []string  // written, in words, where Run asked for it
	more     int       // how many others were
	failures []failure // not to be had, or not to be removed
	due      time.Time // when what rests may be put back; zero: nothing does
}

type failure struct {
	key any // of the object
	err error
}

func (o *outcome) fail(key any, err error) { o.failures = append(o.failures, failure{key, err}) }

// mostRestored bounds how many objects a line of the log names.
const mostRestored = 5

func (o *outcome) restore(what string) {
	if len(o.restored) < mostRestored {
		o.restored = append(o.restored, what)
	} else {
		o.more++
	}
}

// wait notes that something rests until t.
func (o *outcome) wait(t time.Time) { o.due = earlier(o.due, t) }

// earlier returns the earlier of two times, of which zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// apply makes the kernel have what is wanted. restoring says that something was
// changed by others. mu is held.
func (k *Keeper) apply(restoring bool) (o outcome, err error) {
	b := k.begin(restoring, &o)
	defer func() { k.dirty |= b.rested }()
	if k.dirty&links != 0 {
		for _, d := range k.devices {
			if err := b.applyLink(d); err != nil {
				return o, err
			}
		}
		k.dirty &^= links
	}
	if k.want == nil {
		return o, nil // nobody knows which entries and routes of an earlier run are to stay
	}
	if k.dirty&entries != 0 {
		if err := k.readEntries(); err != nil {
			return o, err
		}
		k.dirty &^= entries
	}
	b.putEntries()
	if err := b.applyRoutes(); err != nil {
		return o, err
	}
	b.dropEntries()
	return o, b.lost
}

// Run puts back what other programs remove or change, on notification of the
// kernel, until ctx is done; the error is nil then. It returns an error that
// wraps ErrDeviceGone if a device is gone. It may be called once. What was changed
// before it was called is put back first.
//
// What is removed again and again is put back at longer and longer intervals.
func (k *Keeper) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, k.events.Close)() // wakes it
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

// retryAfter is how long what could not be put back rests, unless a change comes
// before.
const retryAfter = 5 * time.Second

// look puts back what is not as wanted, and returns when to look again without a
// notification; zero: never. The error is that a device is gone.
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

// network is a network of pods, of which each node has a subnet.
type network struct {
	netip.Prefix
	subnetBits int // the length of a subnet
}

// currentNetworks are those of cfg.
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
