package vxlan

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// writes is a batch of changes of the entries of a device.
type writes struct {
	dev      int // index of the device
	requests []nlbatch.Request
	changes  []change // what each request is about
}

// change is a change of one entry.
type change struct {
	what   string       // for messages
	neigh  netip.Addr   // that of the neighbour, if it is one
	delete bool         // to find nothing is success
	apply  func(*table) // what success makes of the table
	err    error        // why it was not done
}

// remedy says what to do about an error of the kernel. Before Linux 5.0
// permanent neighbours counted among those that the table may have (commit
// 58956317c8de), of which there are 1,024 unless somebody has raised it.
func (c *change) remedy(err error) string {
	if c.neigh.IsValid() && !c.delete && errors.Is(err, unix.ENOBUFS) {
		version := 6
		if c.neigh.Is4() {
			version = 4
		}
		return fmt.Sprintf("; the table of neighbours may be full: raise net.ipv%d.neigh.default.gc_thresh3", version)
	}
	return ""
}

func (w *writes) add(r nlbatch.Request, c change) (at int) {
	w.requests = append(w.requests, r)
	w.changes = append(w.changes, c)
	return len(w.requests) - 1
}

func (w *writes) replaceNeigh(addr netip.Addr, mac nlbatch.MAC) (at int) {
	return w.add(nlbatch.NeighReplace(nlbatch.Neigh{Dev: w.dev, IP: addr, MAC: mac}), change{
		what:  fmt.Sprintf("write neighbour %s lladdr %s", addr, mac),
		neigh: addr,
		apply: func(t *table) { t.neigh[addr] = mac },
	})
}

func (w *writes) deleteNeigh(addr netip.Addr, mac nlbatch.MAC) {
	w.add(nlbatch.NeighDel(nlbatch.Neigh{Dev: w.dev, IP: addr, MAC: mac}), change{
		what:   fmt.Sprintf("delete neighbour %s", addr),
		delete: true,
		apply:  func(t *table) { delete(t.neigh, addr) },
	})
}

func (w *writes) replaceFDB(mac nlbatch.MAC, dst netip.Addr) (at int) {
	return w.add(nlbatch.FDBReplace(nlbatch.FDB{Dev: w.dev, MAC: mac, Dst: dst}), change{
		what:  fmt.Sprintf("write FDB entry %s dst %s", mac, dst),
		apply: func(t *table) { t.fdb[mac] = dst },
	})
}

func (w *writes) deleteFDB(mac nlbatch.MAC, dst netip.Addr) {
	w.add(nlbatch.FDBDel(nlbatch.FDB{Dev: w.dev, MAC: mac, Dst: dst}), change{
		what:   fmt.Sprintf("delete FDB entry %s dst %s", mac, dst),
		delete: true,
		apply:  func(t *table) { delete(t.fdb, mac) },
	})
}

// maxTold bounds how many errors of a batch are told.
const maxTold = 5

// err returns what failed of the device named dev, nil if nothing did.
func (w *writes) err(dev string) error {
	var errs []error
	for _, c := range w.changes {
		if c.err != nil {
			errs = append(errs, c.err)
		}
	}
	if n := len(errs); n > maxTold {
		errs = append(errs[:maxTold], fmt.Errorf("and %d more", n-maxTold))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("interface %s: %w", dev, errors.Join(errs...))
}

// do has the changes carried out, and keeps what is known of the kernel's tables
// in step. What fails is in the changes; the error is that the kernel is not
// reached. mu is held.
func (d *Device) do(w *writes) error {
	if len(w.requests) == 0 {
		return nil
	}
	results, err := d.batch.Do(w.requests)
	for i, bad := range results {
		c := &w.changes[i]
		if c.delete && errors.Is(bad, unix.ENOENT) {
			bad = nil
		}
		// With ENOBUFS an entry may have been written, and the answer lost: who
		// takes it back must find it in the table.
		if bad == nil || !c.delete && errors.Is(bad, unix.ENOBUFS) {
			c.apply(&d.entries.have)
		}
		if bad != nil {
			c.err = fmt.Errorf("%s: %w%s", c.what, bad, c.remedy(bad))
		}
	}
	if err != nil {
		// It may be that things were done of which no answer came.
		d.entries.loaded = false
		return fmt.Errorf("interface %s: %w", d.name, err)
	}
	return nil
}

// written counts entries that were written.
type written struct{ neigh, fdb int }

// write brings about the entries of wanted peers, named by the addresses of
// their neighbours, as far as the kernel does not have them. failed says of
// those that lack one now why. It fails as a whole only if the kernel is not
// reached. mu is held.
func (d *Device) write(addrs []netip.Addr) (n written, failed map[netip.Addr]error, err error) {
	e := &d.entries
	w := writes{dev: d.index}
	neighs := make(map[netip.Addr]int) // where in w
	fdbs := make(map[nlbatch.MAC]int)
	for _, addr := range addrs {
		p := e.want[addr]
		e.ours[p.mac] = true
		fdb := func() {
			_, asked := fdbs[p.mac]
			if to := e.endpoints[p.mac]; !asked && e.have.fdb[p.mac] != to {
				fdbs[p.mac] = w.replaceFDB(p.mac, to)
			}
		}
		mac, inUse := e.have.neigh[addr]
		if inUse {
			fdb() // before packets come for the new MAC
		}
		if mac != p.mac {
			neighs[addr] = w.replaceNeigh(addr, p.mac)
		}
		fdb()
	}
	if err := d.do(&w); err != nil {
		return n, nil, err
	}
	failed = make(map[netip.Addr]error)
	for _, addr := range addrs {
		if at, ok := neighs[addr]; ok && w.changes[at].err != nil {
			failed[addr] = w.changes[at].err
		}
		if at, ok := fdbs[e.want[addr].mac]; ok && w.changes[at].err != nil {
			failed[addr] = w.changes[at].err
		}
	}
	for _, at := range neighs {
		if w.changes[at].err == nil {
			n.neigh++
		}
	}
	for _, at := range fdbs {
		if w.changes[at].err == nil {
			n.fdb++
		}
	}
	return n, failed, nil
}
