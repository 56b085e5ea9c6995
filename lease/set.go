package lease

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// Set holds the leases of a network, accumulated from the updates of a store.
// The zero Set is empty and ready to use. It is not safe for concurrent use.
type Set struct {
	leases map[Key]Lease
	// sorted holds the leases in the order of their subnets; nil if not sorted
	// yet. Usually one of thousands changes at a time.
	sorted []Lease
}

// NewSet returns the set that holds leases; of two with the same Key the later
// one counts.
func NewSet(leases []Lease) *Set {
	s := new(Set)
	s.Apply(Update{Snapshot: true, Put: leases})
	return s
}

// Apply folds u into the set and reports whether a lease was added, removed or
// changed in more than its expiration.
func (s *Set) Apply(u Update) (changed bool) {
	old := s.leases
	if s.leases == nil || u.Snapshot {
		s.leases = make(map[Key]Lease, len(u.Put))
		s.sorted = nil
	}
	if len(u.Put)+len(u.Delete) > fewChanges {
		s.sorted = nil
	}
	for _, l := range u.Put {
		k := l.Key()
		was, ok := old[k]
		changed = changed || !ok || !was.Equal(l)
		s.leases[k] = l
		s.place(l)
	}
	for _, k := range u.Delete {
		l, ok := s.leases[k]
		changed = changed || ok
		delete(s.leases, k)
		if i, found := slices.BinarySearchFunc(s.sorted, l, compare); ok && found {
			s.sorted = slices.Delete(s.sorted, i, i+1)
		}
	}
	if u.Snapshot {
		for k := range old {
			_, ok := s.leases[k]
			changed = changed || !ok
		}
	}
	return changed
}

// With more than fewChanges at once it is cheaper to sort all leases again.
const fewChanges = 16

// place puts l in its position in sorted.
func (s *Set) place(l Lease) {
	if s.sorted == nil {
		return
	}
	i, found := slices.BinarySearchFunc(s.sorted, l, compare)
	if found {
		s.sorted[i] = l
	} else {
		s.sorted = slices.Insert(s.sorted, i, l)
	}
}

// compare orders two leases of one network by their subnets.
func compare(a, b Lease) int {
	return cmp.Or(comparePrefixes(a.Subnet, b.Subnet), comparePrefixes(a.IPv6Subnet, b.IPv6Subnet))
}

// comparePrefixes is netip.Prefix.Compare for masked prefixes, without the error that
// it allocates for an invalid one. Most leases have one.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Get returns the lease with key k.
func (s *Set) Get(k Key) (Lease, bool) {
	l, ok := s.leases[k]
	return l, ok
}

// Len returns how many leases there are.
func (s *Set) Len() int { return len(s.leases) }

// Leases returns the leases in the order of their subnets. The caller owns the
// slice.
func (s *Set) Leases() []Lease {
	if s.sorted == nil {
		s.sorted = slices.AppendSeq(make([]Lease, 0, len(s.leases)), maps.Values(s.leases))
		slices.SortFunc(s.sorted, compare)
	}
	return slices.Clone(s.sorted)
}

// Diff returns the update that turns s into the set of leases. Differences in
// expiration alone are ignored.
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
