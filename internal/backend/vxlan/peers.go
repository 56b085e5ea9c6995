package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
	"github.com/twillnet/twill/internal/logging"
)

// Peer is another node, as its lease tells of it.
type Peer struct {
	Subnet   netip.Prefix     // of its pods, masked
	MAC      net.HardwareAddr // its VtepMAC
	Endpoint netip.Addr       // at which its VTEP is reached; of the family of Config.Local
}

// PeerError is a peer that has no entries, and why.
type PeerError struct {
	Peer Peer
	Err  error
}

func (e *PeerError) Error() string {
	return fmt.Sprintf("add VXLAN peer %s at %s: %v", e.Peer.Subnet, e.Peer.Endpoint, e.Err)
}

func (e *PeerError) Unwrap() error { return e.Err }

// PeerErrors are all peers of an Add that have no entries.
type PeerErrors []*PeerError

func (e PeerErrors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%v (and %d other peers)", e[0], len(e)-1)
}

// Unwrap returns all of them.
func (e PeerErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, p := range e {
		errs[i] = p
	}
	return errs
}

// Add gives each of the peers its neighbour and its FDB entry, in this order,
// and has Run look after them. What is right in the kernel already is not
// written. A peer takes the place of one that was told before with the same
// subnet; an FDB entry that only the former one used goes with Retain. Routes to
// a peer are to be made after Add, and removed before Retain.
//
// A peer that cannot have both entries is left with none. The error then is a
// PeerErrors with all of these; the others have theirs. Any other error says
// that nothing was done; it wraps ErrDeviceGone if the device is not there.
func (d *Device) Add(peers []Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := &d.entries
	if !e.loaded {
		if err := d.load(); err != nil {
			return err
		}
	}
	var (
		bad   PeerErrors
		added = make(map[netip.Addr]Peer)
		addrs []netip.Addr // of added, in the order of peers
	)
	for _, p := range peers {
		if e.settled(p) {
			continue
		}
		sound, err := d.sound(p)
		if err != nil {
			bad = append(bad, &PeerError{p, err})
			continue
		}
		addr := p.Subnet.Addr()
		if old := e.want[addr]; old.subnet != sound.subnet || old.mac != sound.mac || old.endpoint != sound.endpoint {
			e.set(sound)
		}
		if _, twice := added[addr]; !twice {
			addrs = append(addrs, addr)
		}
		added[addr] = p
	}
	if len(addrs) > 0 {
		d.warnShared(addrs)
	}
	_, failed, err := d.write(addrs)
	if err != nil {
		return d.gone(err)
	}
	for _, addr := range addrs {
		if err, ok := failed[addr]; ok {
			if errors.Is(err, unix.ENODEV) {
				return d.gone(err)
			}
			bad = append(bad, &PeerError{added[addr], err})
		}
	}
	if len(bad) == 0 {
		return nil
	}
	d.takeBack(bad)
	return bad
}

// sound refuses a peer of which the kernel would make nonsense.
func (d *Device) sound(p Peer) (peer, error) {
	mac, err := macOf(p.MAC)
	if err != nil {
		return peer{}, err
	}
	endpoint := p.Endpoint.Unmap().WithZone("")
	switch {
	case !p.Subnet.IsValid() || p.Subnet != p.Subnet.Masked():
		return peer{}, errors.New("the subnet has host bits or is missing")
	case !slices.ContainsFunc(d.cfg.Subnets, func(own netip.Prefix) bool { return own.Addr().BitLen() == p.Subnet.Addr().BitLen() }):
		return peer{}, fmt.Errorf("%s has no subnet of this address family", d.name)
	case slices.Contains(d.cfg.Subnets, p.Subnet):
		return peer{}, errors.New("the subnet is that of this node")
	case mac == nlbatch.MAC(d.mac):
		return peer{}, fmt.Errorf("it has the MAC address %s of this node, which drops what comes from there: delete %s on one of the two and start its flanneld or twilld again", mac, d.name)
	case !endpoint.IsValid() || endpoint.IsUnspecified() || endpoint.IsMulticast():
		return peer{}, errors.New("the endpoint is not the address of a host")
	case endpoint.Is4() != d.cfg.Local.Is4():
		return peer{}, fmt.Errorf("the endpoint is of another address family than %s, the address of this node", d.cfg.Local)
	}
	return peer{subnet: p.Subnet, mac: mac, endpoint: endpoint}, nil
}

// warnShared tells of other peers that have the MACs of those just added, at
// another endpoint. That is well for a node that has changed its address, whose
// former lease still lives; of two nodes one cannot be reached.
func (d *Device) warnShared(added []netip.Addr) {
	e := &d.entries
	last := make(map[nlbatch.MAC]peer, len(added))
	for _, addr := range added {
		if p := e.want[addr]; p.seq > last[p.mac].seq {
			last[p.mac] = p
		}
	}
	for _, p := range e.want {
		now, ok := last[p.mac]
		if ok && p.seq < now.seq && p.endpoint != now.endpoint {
			d.cfg.Logger.Warn("two leases tell the same MAC address, the one told last has it",
				logging.KeyDevice, d.name, logging.KeySubnet, p.subnet, logging.KeyWas, p.endpoint, logging.KeyNow, now.endpoint)
		}
	}
}

// takeBack forgets peers and deletes what entries they have. What cannot be
// deleted is left to Retain.
func (d *Device) takeBack(bad PeerErrors) {
	e := &d.entries
	var addrs []netip.Addr
	macs := make(map[nlbatch.MAC]bool)
	for _, b := range bad {
		addrs = append(addrs, b.Peer.Subnet.Addr())
		if p, ok := e.want[b.Peer.Subnet.Addr()]; ok {
			macs[p.mac] = true
		}
	}
	e.unset(addrs)
	w := writes{dev: d.index}
	for _, b := range bad {
		addr := b.Peer.Subnet.Addr()
		if mac, ok := e.have.neigh[addr]; ok && d.mine(addr) {
			w.deleteNeigh(addr, mac)
		}
	}
	for mac := range macs {
		_, used := e.endpoints[mac]
		if dst, ok := e.have.fdb[mac]; ok && !used {
			w.deleteFDB(mac, dst)
		}
	}
	_ = d.do(&w)
}

// Retain deletes the entries of all peers whose subnets are not among those of
// peers: of this run and of those before, of twill and of stock flannel. The
// comment of the package says which entries these are. Peers that are in peers
// are not added by it.
func (d *Device) Retain(peers []Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := &d.entries
	if !e.loaded {
		if err := d.load(); err != nil {
			return err
		}
	}
	keep := make(map[netip.Addr]bool, len(peers))
	for _, p := range peers {
		keep[p.Subnet.Addr()] = true
	}
	var gone []netip.Addr
	for addr := range e.want {
		if !keep[addr] {
			gone = append(gone, addr)
		}
	}
	e.unset(gone)
	if !e.untidy {
		return nil // as most times
	}
	stale := gone // whatever the length of their subnets
	for addr := range e.have.neigh {
		if !keep[addr] && d.mine(addr) {
			stale = append(stale, addr)
		}
	}

	w := writes{dev: d.index}
	// First the FDB entries, so that if this is cut short their neighbours are
	// still there to say whose they are.
	for mac := range e.ours {
		if _, used := e.endpoints[mac]; used {
			continue
		}
		if dst, ok := e.have.fdb[mac]; ok {
			w.deleteFDB(mac, dst)
		} else {
			delete(e.ours, mac)
		}
	}
	slices.SortFunc(stale, netip.Addr.Compare)
	for _, addr := range slices.Compact(stale) {
		if mac, ok := e.have.neigh[addr]; ok {
			w.deleteNeigh(addr, mac)
		}
	}
	if err := d.do(&w); err != nil {
		return d.gone(err)
	}
	err := w.err(d.name)
	e.untidy = err != nil
	return d.gone(err)
}
