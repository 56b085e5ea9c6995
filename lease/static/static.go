// Package static implements lease.Store on a JSON file that an operator, or their
// tooling, maintains on each node: the network config of flannel together with
// the leases of all nodes.
//
//	{
//	  "Network": "10.5.0.0/16",
//	  "Backend": {"Type": "udp", "Port": 8285},
//	  "Leases": [
//	    {"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"},
//	    {"Subnet": "10.5.2.0/24", "PublicIP": "192.0.2.2"}
//	  ]
//	}
//
// A lease has the keys Subnet, IPv6Subnet, PublicIP, PublicIPv6, BackendType,
// BackendData and BackendV6Data. One without BackendData is that of a node that runs
// twill with its default options; that of a node which runs stock flannel must have
// "BackendData": {}. The file is accepted or refused as a whole.
package static

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/fsnotify/fsnotify"

	"github.com/twillnet/twill/lease"
)

// Store serves the last valid version of a lease file. It is safe for concurrent
// use.
type Store struct {
	path string
	log  *slog.Logger
	// current is the version that Open read, later the one that Watch read.
	current atomic.Pointer[version]
	// newNotify opens inotify. Tests make it fail.
	newNotify func() (*fsnotify.Watcher, error)
}

var _ lease.Store = (*Store)(nil)

// Open reads the lease file at path. It returns an *Error if the file cannot be
// used. The file is read again only while Watch runs.
func Open(path string, log *slog.Logger) (*Store, error) {
	s := &Store{path: path, log: log, newNotify: fsnotify.NewWatcher}
	text, err := readFile(path)
	if err != nil {
		return nil, err
	}
	v, err := parse(path, text)
	if err != nil {
		return nil, err
	}
	s.current.Store(v)
	return s, nil
}

// Config returns the network config of the last valid version.
func (s *Store) Config(context.Context) (*lease.Config, error) {
	return s.current.Load().config, nil
}

// Leases returns the leases of the last valid version, which the caller must not
// change.
func (s *Store) Leases(context.Context) ([]lease.Lease, error) {
	return s.current.Load().leases, nil
}

// Acquire returns the lease that has one of the public addresses of a. A file does
// not allocate subnets, so prev is ignored.
func (s *Store) Acquire(_ context.Context, a lease.Attrs, _ lease.Previous) (*lease.Lease, error) {
	v := s.current.Load()
	var own []lease.Lease // two if they share the addresses of a between them
	for _, l := range v.leases {
		if holds(l, a) {
			own = append(own, l)
		}
	}
	switch len(own) {
	case 0:
		return nil, fmt.Errorf("lease file %s: %w: looked for %s; the file has %s; add a lease with this node's address as PublicIP, or choose another interface with --iface",
			s.path, lease.ErrNoLease, list(a.Addrs()), list(v.addrs()))
	case 1:
		return &own[0], nil
	}
	return nil, fmt.Errorf("lease file %s: this node's PublicIP %s and PublicIPv6 %s are in separate leases, %s and %s; combine them into one lease",
		s.path, a.PublicIP, a.PublicIPv6, own[0].Key(), own[1].Key())
}

// Renew returns own as it is in the file: leases in a file do not expire. It fails with
// lease.ErrNoLease once the file assigns the subnets to another node, or to none.
func (s *Store) Renew(_ context.Context, own *lease.Lease) (*lease.Lease, error) {
	for _, l := range s.current.Load().leases {
		if l.Key() == own.Key() && holds(l, own.Attrs) {
			return &l, nil
		}
	}
	return nil, fmt.Errorf("lease file %s: %w: %s is no longer the lease of %s",
		s.path, lease.ErrNoLease, own.Key(), list(own.Addrs()))
}

// holds reports whether l is a lease of the node that a describes.
func holds(l lease.Lease, a lease.Attrs) bool {
	return a.PublicIP.IsValid() && a.PublicIP == l.PublicIP ||
		a.PublicIPv6.IsValid() && a.PublicIPv6 == l.PublicIPv6
}

// addrs returns the public addresses of all leases.
func (v *version) addrs() []netip.Addr {
	var as []netip.Addr
	for _, l := range v.leases {
		as = append(as, l.Addrs()...)
	}
	return as
}

// list formats addresses for an error message, which has to stay readable in a
// cluster of hundreds of nodes.
func list(as []netip.Addr) string {
	const most = 16
	if len(as) == 0 {
		return "no address"
	}
	var b strings.Builder
	for i, a := range as[:min(len(as), most)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	if more := len(as) - most; more > 0 {
		fmt.Fprintf(&b, " and %d more", more)
	}
	return b.String()
}
