package lease

import (
	"cmp"
	"fmt"
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

// NewSet returns the set that holds leases. If two have the same Key, the later one
// counts.
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

// fewChanges is the number of changes above which sorting all leases again is cheaper.
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

// Rightful returns the leases in order, without subnets that overlap another
// node's, and the conflicts found. own keeps its subnets; between two other nodes,
// the one with the wider subnet does: stores allocate subnets of one size, so the
// smaller one was written by hand or for another configuration, and a route to it
// would divert packets from the owner of the wider one. A lease with no subnet
// left is omitted. leases is not modified; if there are no conflicts, it is returned
// as it is.
func Rightful(leases []Lease, own Key) (kept []Lease, conflicts []*ConflictError) {
	first := slices.IndexFunc(leases, func(l Lease) bool { return l.Key() == own })
	dropped := make(map[int][]string)
	for _, f := range subnetFields {
		for _, c := range checkOverlap(leases, first, f.name, f.of) {
			conflicts = append(conflicts, c)
			dropped[c.loser] = append(dropped[c.loser], f.name)
		}
	}
	if len(conflicts) == 0 {
		return leases, nil
	}
	for i, l := range leases {
		for _, field := range dropped[i] {
			if field == "Subnet" {
				l.Subnet = netip.Prefix{}
			} else {
				l.IPv6Subnet = netip.Prefix{}
			}
		}
		if l.Subnet.IsValid() || l.IPv6Subnet.IsValid() {
			kept = append(kept, l)
		}
	}
	return kept, conflicts
}

// ConflictError reports two leases that exclude each other: their subnets overlap,
// or two nodes claim one public address.
type ConflictError struct {
	A, B           Lease
	IndexA, IndexB int    // in the checked leases; IndexA is greater
	Field          string // "Subnet", "IPv6Subnet", "PublicIP" or "PublicIPv6"
	ValueA, ValueB string // of Field

	loser int // IndexA or IndexB: the lease that yields
}

func (e *ConflictError) Error() string {
	what := fmt.Sprintf("both have %s %s", e.Field, e.ValueA)
	if e.ValueA != e.ValueB {
		what = fmt.Sprintf("%s %s overlaps %s", e.Field, e.ValueA, e.ValueB)
	}
	return fmt.Sprintf("leases %s of %s and %s of %s: %s", e.A.Key(), e.A.node(), e.B.Key(), e.B.node(), what)
}

// checkOverlap walks the subnets in the order of their addresses, wider ones first. Two
// prefixes are either nested or disjoint, so a subnet that overlaps any earlier one
// also overlaps the last one that did not overlap. The lease with index own, if not
// negative, takes precedence over all others.
func checkOverlap(leases []Lease, own int, field string, of func(Lease) netip.Prefix) []*ConflictError {
	order := make([]int, 0, len(leases))
	for i, l := range leases {
		if of(l).IsValid() {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return comparePrefixes(of(leases[a]), of(leases[b])) })
	var errs []*ConflictError
	last := -1
	for _, i := range order {
		switch {
		case own >= 0 && i != own && of(leases[own]).Overlaps(of(leases[i])):
			errs = append(errs, conflict(leases, own, i, field, of))
		case last >= 0 && i != own && of(leases[last]).Overlaps(of(leases[i])):
			errs = append(errs, conflict(leases, last, i, field, of))
		default:
			last = i
		}
	}
	return errs
}

// conflict returns the conflict between two leases. The second has to yield.
func conflict[V fmt.Stringer](leases []Lease, owner, loser int, field string, of func(Lease) V) *ConflictError {
	i, j := max(owner, loser), min(owner, loser)
	a, b := leases[i], leases[j]
	return &ConflictError{a, b, i, j, field, of(a).String(), of(b).String(), loser}
}
