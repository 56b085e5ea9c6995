package layout

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// Table holds the leases of the cluster's nodes: one lease per node, and one node
// per lease. It records which leases have changed until they are taken. It is not
// safe for concurrent use.
type Table struct {
	keys  *Keys
	log   *slog.Logger
	nodes map[string]*row
	// holder maps a lease to the node that has it: the first one that claimed it.
	holder map[lease.Key]string
	dirty  map[lease.Key]bool

	// own is this node's name, empty before it is known. Its lease is the one it
	// acquired, not the one in its annotations.
	own string
}

// row is the state of a node.
type row struct {
	lease lease.Lease // valid if has is
	has   bool
	fault string // why its annotations are ignored; empty if they are not
}

// NewTable returns an empty table, which writes faults of nodes to log.
func NewTable(k *Keys, log *slog.Logger) *Table {
	return &Table{
		keys: k, log: log,
		nodes: map[string]*row{}, holder: map[lease.Key]string{}, dirty: map[lease.Key]bool{},
	}
}

// Put updates a node. Errors in it are logged, and it keeps the lease that it had:
// other nodes may still reach it.
func (t *Table) Put(e *Node) {
	r := t.nodes[e.Name]
	if r == nil {
		r = &row{}
		t.nodes[e.Name] = r
	}
	if e.Name == t.own && r.has {
		return
	}
	if !t.keys.isManaged(e) {
		fault := ""
		if r.has {
			fault = fmt.Sprintf("annotation %s: no longer \"true\"", t.keys.managed)
		}
		t.blame(e.Name, r, fault, "start flannel or twilld on that node, or delete the node")
		return
	}
	l, err := t.keys.Lease(e)
	if err != nil {
		t.blame(e.Name, r, err.Error(), "correct it; flannel and twilld write the annotations of their node when they start")
		return
	}
	t.blame(e.Name, r, "", "")
	t.give(e.Name, r, l)
}

// blame records why a node is ignored, and logs the reason if it is new.
func (t *Table) blame(name string, r *row, fault, remedy string) {
	switch {
	case fault == "" || fault == r.fault:
	case r.has:
		t.log.Warn("node is no longer valid, its last valid lease stays in force",
			logging.KeyNode, name, logging.KeyWhy, fault, logging.KeyRemedy, remedy)
	default:
		t.log.Warn("node is not valid, ignoring it", logging.KeyNode, name, logging.KeyWhy, fault, logging.KeyRemedy, remedy)
	}
	r.fault = fault
}

// give assigns the lease l to a node.
func (t *Table) give(name string, r *row, l lease.Lease) {
	if r.has && r.lease.Equal(l) {
		return
	}
	if r.has && r.lease.Key() != l.Key() {
		t.release(name, r)
	}
	r.lease, r.has = l, true
	k := l.Key()
	switch other, taken := t.holder[k]; {
	case !taken || other == name || name == t.own:
		t.holder[k] = name
		t.dirty[k] = true
	default:
		t.log.Warn("two nodes have the same subnet, the first keeps it", logging.KeySubnet, l.Subnets(),
			logging.KeyNode, other, logging.KeyOther, name, logging.KeyRemedy, "delete the node that no longer exists")
	}
}

// release removes a node's lease, and assigns it to another node that claims
// it.
func (t *Table) release(name string, r *row) {
	k := r.lease.Key()
	r.has = false
	if t.holder[k] != name {
		return
	}
	delete(t.holder, k)
	t.dirty[k] = true
	for _, other := range slices.Sorted(maps.Keys(t.nodes)) {
		if o := t.nodes[other]; o.has && o.lease.Key() == k {
			t.holder[k] = other
			return
		}
	}
}

// Remove removes a node. The own lease stays until another is acquired.
func (t *Table) Remove(name string) {
	r := t.nodes[name]
	if r == nil || name == t.own && r.has {
		return
	}
	if r.has {
		t.release(name, r)
	}
	delete(t.nodes, name)
}

// SetOwn sets l, which this node acquired, as its lease.
func (t *Table) SetOwn(name string, l lease.Lease) {
	t.own = name
	r := t.nodes[name]
	if r == nil {
		r = &row{}
		t.nodes[name] = r
	}
	r.fault = ""
	t.give(name, r, l)
}

// Replace replaces the table with a complete list.
func (t *Table) Replace(all []*Node) {
	there := make(map[string]bool, len(all))
	for _, e := range all {
		there[e.Name] = true
	}
	// Remove deleted nodes first, so that their subnets are free for others.
	for name := range t.nodes {
		if !there[name] {
			t.Remove(name)
		}
	}
	for _, e := range all {
		t.Put(e)
	}
}

// Take returns the changes since the last call.
func (t *Table) Take() (u lease.Update) {
	for _, k := range slices.Sorted(maps.Keys(t.dirty)) {
		if name, ok := t.holder[k]; ok {
			u.Put = append(u.Put, t.nodes[name].lease)
		} else {
			u.Delete = append(u.Delete, k)
		}
	}
	clear(t.dirty)
	return u
}

// Leases returns all leases in force.
func (t *Table) Leases() []lease.Lease {
	all := make([]lease.Lease, 0, len(t.holder))
	for _, name := range t.holder {
		all = append(all, t.nodes[name].lease)
	}
	return lease.NewSet(all).Leases()
}
