package keep

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// Set makes the kernel have s, and removes what an earlier State or an earlier
// run installed and s does not list. Failures are logged once and do not stop
// the rest. ok reports whether everything succeeded. Run retries what failed.
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
	// Write the record before anything is created; otherwise the next run would
	// not recognize what a killed run left.
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

// adopt makes the links the kept devices. Devices already set up by Ensure are
// updated only if they differ.
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

// target is a wanted route with the index of its device.
type target struct {
	nlbatch.Route
	yield bool
	err   error // why it cannot be installed
}

// wanted is a State with device names resolved to indices.
type wanted struct {
	fdb    map[fdbKey]netip.Addr
	neighs map[neighKey]MAC
	routes map[routeKey]target
	devs   map[int]bool // the devices of routes
	twice  []failure    // routes with the same key as another wanted one
}

// compile resolves the devices of s.
func (k *Keeper) compile(s State) *wanted {
	w := &wanted{
		fdb: make(map[fdbKey]netip.Addr, len(s.FDB)), neighs: make(map[neighKey]MAC, len(s.Neighs)),
		routes: make(map[routeKey]target, len(s.Routes)), devs: make(map[int]bool),
	}
	index := make(map[string]int)
	dev := func(name string) int {
		i, ok := index[name]
		if !ok {
			if d, kept := k.devices[name]; kept {
				i = d.index
			} else if link, err := k.nl.LinkByName(name); err == nil {
				i = link.Attrs().Index
			}
			index[name] = i
		}
		return i
	}
	for _, f := range s.FDB {
		w.fdb[fdbKey{dev(f.Dev), f.MAC}] = f.Dst
	}
	for _, n := range s.Neighs {
		w.neighs[neighKey{dev(n.Dev), n.IP}] = n.MAC
	}
	for _, r := range s.Routes {
		t := target{Route: nlbatch.Route{Dst: r.Dst.Masked(), Via: r.Via.WithZone(""), OnLink: r.OnLink}, yield: r.Yield}
		if r.Blackhole {
			t.Route = nlbatch.Route{Dst: r.Dst.Masked(), Blackhole: true, Metric: lastMetric}
		} else if t.Dev = dev(r.Dev); t.Dev == 0 {
			t.err = fmt.Errorf("set route %s: interface %s is gone", r, r.Dev)
		}
		key := routeKey{t.Dst, t.Metric}
		if other, twice := w.routes[key]; twice {
			if other.Route != t.Route {
				w.twice = append(w.twice, failure{t, fmt.Errorf("set route %s: another route to this destination is wanted: %s", r, k.words(other.Route))})
			}
			continue
		}
		w.routes[key] = t
		w.devs[t.Dev] = true
	}
	return w
}

// apply makes the kernel have the wanted state. restoring reports that other
// programs may have changed it. mu is held.
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
		return o, nil // it is not known yet which entries and routes of earlier runs should stay
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

// outcome is the result of an apply.
type outcome struct {
	restored []string  // descriptions of written objects, if Run called apply
	more     int       // number of further restored objects
	failures []failure // objects that could not be written or deleted
	due      time.Time // when the first delayed object may be restored; zero if there is none
}

type failure struct {
	key any // that of the object
	err error
}

func (o *outcome) fail(key any, err error) { o.failures = append(o.failures, failure{key, err}) }

// mostRestored bounds how many objects a log line lists.
const mostRestored = 5

func (o *outcome) restore(what string) {
	if len(o.restored) < mostRestored {
		o.restored = append(o.restored, what)
	} else {
		o.more++
	}
}

// wait records that an object must not be written before t.
func (o *outcome) wait(t time.Time) { o.due = earlier(o.due, t) }

// earlier returns the earlier of two times. The zero time means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
