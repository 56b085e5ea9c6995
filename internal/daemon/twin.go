package daemon

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// Two hosts may have the same public address: cloned machines, or virtual machines that
// are all 10.0.2.15, each behind its own NAT. To a store that identifies nodes by
// their address they are one node, with one lease. An ID in the lease
// distinguishes them.
//
// A node that finds a lease of its address with another ID writes a challenge into
// it, which does not affect forwarding. If the node that holds the lease is alive it
// announces itself again within moments, and both report the conflict. If it is not,
// for example after the machine was replaced, the lease can be taken over. If two
// nodes share a lease because they started at the same time, the one with the
// greater ID yields.

const (
	// answerWithin is how long a node that is alive may take to answer: one
	// message from etcd, and one to it.
	answerWithin = 5 * time.Second
	// askAgain is how often a node that has a twin checks whether it is gone.
	askAgain = 30 * time.Second
)

// errYield ends a session that shared a lease with another host.
var errYield = errors.New("another host has this node's lease")

// hostID returns an ID that this host keeps across restarts and that its clones do
// not share, or "" if there is nothing to derive it from. The inputs cannot be
// recovered from it, see machine-id(5).
func hostID(link underlay.Interface) string {
	var facts []string
	for _, file := range []string{"/etc/machine-id", "/sys/class/dmi/id/product_uuid"} {
		text, _ := os.ReadFile(file) // the file may not exist
		facts = append(facts, strings.TrimSpace(string(text)))
	}
	mac := ""
	if i, err := net.InterfaceByIndex(link.Index); err == nil {
		mac = i.HardwareAddr.String()
	}
	facts = append(facts, mac)
	if !slices.ContainsFunc(facts, func(f string) bool { return f != "" }) {
		return ""
	}
	sum := sha256.Sum256([]byte("twill node\n" + strings.Join(facts, "\n")))
	return hex.EncodeToString(sum[:8])
}

// challenge checks whether another live host has the lease of the address in a. It
// returns a description of the conflict with the remedy, or "".
func (s *session) challenge(ctx context.Context, a lease.Attrs) (twin string, err error) {
	own := s.in.self.ID
	if own == "" {
		return "", nil
	}
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan lease.Update)
	watch := start("watch leases", func() error { return s.store.Watch(ctx, updates) })
	defer await(watch)
	defer cancel()
	var (
		leases  lease.Set
		asked   lease.Key // of the challenged lease
		timeout <-chan time.Time
	)
	for {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case err := <-watch:
			return "", err
		case <-timeout:
			s.log.Info("the host of the lease does not answer, taking over the lease", logging.KeySubnet, asked)
			return "", nil
		case u := <-updates:
			leases.Apply(u)
			if asked != "" {
				// Any later write by the other host shows that it is alive.
				if i := slices.IndexFunc(u.Put, func(l lease.Lease) bool { return l.Key() == asked }); i >= 0 {
					if _, challenger := dataplane.NodeOf(u.Put[i].Attrs); challenger != own {
						return twinOf(u.Put[i]), nil
					}
				}
				continue
			}
			l := leaseAt(leases.Leases(), a)
			if node, _ := dataplane.NodeOf(l.Attrs); node == "" || node == own {
				return "", nil // free, this node's own, or held by a node without an ID
			}
			s.log.Warn("another host has a lease for this node's public address, checking whether it is alive", logging.KeySubnet, l.Subnets())
			l.Attrs = dataplane.Challenge(l.Attrs, own)
			asking, cancel := context.WithTimeout(ctx, s.answerWithin)
			_, err := s.store.Renew(asking, &l)
			cancel()
			switch {
			case errors.Is(err, lease.ErrLost):
				return "", nil // the lease is gone now
			case asking.Err() == context.DeadlineExceeded && err != nil:
				return "", nil // the store does not answer, perhaps for long
			case err != nil:
				return "", err
			}
			asked, timeout = l.Key(), time.After(s.answerWithin)
		}
	}
}

// leaseAt returns the lease of the address in a, or the zero lease if there is none.
func leaseAt(all []lease.Lease, a lease.Attrs) lease.Lease {
	for _, l := range all {
		if a.PublicIP.IsValid() && l.PublicIP == a.PublicIP || !a.PublicIP.IsValid() && l.PublicIPv6 == a.PublicIPv6 {
			return l
		}
	}
	return lease.Lease{}
}

// twinOf describes the conflict with the node of l, which has this one's
// address, and the remedy.
func twinOf(l lease.Lease) string {
	return fmt.Sprintf("another host has the same public address %s and holds its lease %s: give each host its own address with --iface or --public-ip",
		cmp.Or(l.PublicIP, l.PublicIPv6), l.Key())
}

// answer checks whether another host has written to this node's lease, and if so
// has the holder write it again. An error means that this node yields.
func (s *session) answer() error {
	own := s.in.self.ID
	listed, ok := s.in.leases.Get(s.in.own.Key())
	node, challenger := dataplane.NodeOf(listed.Attrs)
	challenged := challenger != "" && challenger != own
	// A host with stock flannel has no ID. Nor do the announcements of this node with some
	// backends, or those that an earlier version of twilld may have written, which stay in
	// the store until this node's announcement replaces them. The store may list one after a
	// later announcement that equals an earlier one, which only seems to be listed already.
	if announced, _ := dataplane.NodeOf(s.applied.attrs); announced == "" {
		s.listed = false
	}
	shared := node != own && (node != "" || s.listed && !listed.Attrs.Equal(s.anonymous))
	s.listed = s.listed || node == own
	if own == "" || !ok || s.in.ownGone() != "" || !challenged && !shared {
		return nil
	}
	s.twin, s.twinSeen = twinOf(listed), time.Now()
	if s.shown.changed("twin", s.twin) {
		s.log.Error("another host has this node's public address", logging.KeyWhy, s.twin)
	}
	if shared && node != "" && node < own {
		return errYield
	}
	s.holder.nudge()
	return nil
}

// addressConflict describes a twin that was seen recently, or returns "".
func (s *session) addressConflict() string {
	if s.twin == "" || time.Since(s.twinSeen) > 2*askAgain {
		return ""
	}
	return s.twin
}
