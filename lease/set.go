package lease

import (
	"cmp"
	"maps"
	"slices"
)

// Set is the leases of a network as the updates of a store add up. The zero
// Set is empty and ready. It is not for concurrent use.
type Set struct {
	leases map[Key]Lease
}

// NewSet returns the set that holds leases; of two with one Key the later
// stays.
func NewSet(leases []Lease) *Set {
	s := new(Set)
	s.Apply(Update{Snapshot: true, Put: leases})
	return s
}

// Apply folds u into the set and says whether a lease came, went or changed
// in more than its expiration.
func (s *Set) Apply(u Update) (changed bool) {
	old := s.leases
	if s.leases == nil || u.Snapshot {
		s.leases = make(map[Key]Lease, len(u.Put))
	}
	for _, l := range u.Put {
		k := l.Key()
		was, ok := old[k]
		changed = changed || !ok || !was.Equal(l)
		s.leases[k] = l
	}
	for _, k := range u.Delete {
		_, ok := s.leases[k]
		changed = changed || ok
		delete(s.leases, k)
	}
	if u.Snapshot {
		for k := range old {
			_, ok := s.leases[k]
			changed = changed || !ok
		}
	}
	return changed
}

// Get returns the lease that k names.
func (s *Set) Get(k Key) (Lease, bool) {
	l, ok := s.leases[k]
	return l, ok
}

// Len returns how many leases there are.
func (s *Set) Len() int { return len(s.leases) }

// Leases returns the leases in the order of their subnets. The slice is the
// caller's.
func (s *Set) Leases() []Lease {
	return slices.SortedFunc(maps.Values(s.leases), func(a, b Lease) int {
		return cmp.Or(a.Subnet.Compare(b.Subnet), a.IPv6Subnet.Compare(b.IPv6Subnet))
	})
}

// Diff returns the update that turns s into the set of leases. Expirations
// alone make no difference.
func (s *Set) Diff(leases []Lease) (u Update) {
	to := NewSet(leases)
	for _, l := range to.Leases() {
		if was, ok := s.leases[l.Key()]; !ok || !was.Equal(l) {
			u.Put = append(u.Put, l)
		}
	}
	for _, l := range s.Leases() {
		if _, ok := to.leases[l.Key()]; !ok {
			u.Delete = append(u.Delete, l.Key())
		}
	}
	return u
}
