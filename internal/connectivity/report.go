package connectivity

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/status"
)

// Report is what a test has found.
type Report struct {
	// OK means that all tests that were tried have passed, and that doctor finds nothing
	// bad on any node that was asked.
	OK          bool         `json:"ok"`
	Nodes       []NodeReport `json:"nodes"`
	Results     []Result     `json:"results"`
	Differences []string     `json:"differences,omitempty"`
}

// NodeReport is what is known of a node.
type NodeReport struct {
	Node     netip.Addr       `json:"node"`
	Subnets  []netip.Prefix   `json:"subnets"`
	Asked    bool             `json:"asked"` // a part was to run there
	Problem  string           `json:"problem,omitempty"`
	Findings []doctor.Finding `json:"findings,omitempty"` // except those that are good

	hello *Hello // nil if there was none
}

// fail notes why the part of the node has not done its work. The first reason is kept.
func (n *NodeReport) fail(err error) {
	if n.Problem == "" {
		n.Problem = err.Error()
	}
}

// Failed reports whether a test has failed.
func (r *Result) Failed() bool { return slices.ContainsFunc(r.Tests, Outcome.Failed) }

// conclude completes a report that has nodes and results.
func (r *Report) conclude() {
	r.Differences = slices.Concat(r.factDifferences(), r.tableDifferences())
	r.OK = !slices.ContainsFunc(r.Results, func(one Result) bool { return one.Failed() })
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if n.Problem != "" || doctor.Worst(n.Findings) == doctor.Bad {
			r.OK = false
		}
	}
}

// factDifferences describes the facts that are not the same on all nodes.
func (r *Report) factDifferences() (all []string) {
	var names []string
	nodes := make(map[string]map[string][]netip.Addr) // by name and value
	for _, n := range r.Nodes {
		if n.hello == nil {
			continue
		}
		for _, f := range n.hello.Facts {
			if nodes[f.Name] == nil {
				names = append(names, f.Name)
				nodes[f.Name] = make(map[string][]netip.Addr)
			}
			nodes[f.Name][f.Value] = append(nodes[f.Name][f.Value], n.Node)
		}
	}
	for _, name := range names {
		if len(nodes[name]) < 2 {
			continue
		}
		var values []string
		for value, with := range nodes[name] {
			values = append(values, fmt.Sprintf("%s on %s", orNone(value), nodesText(with)))
		}
		slices.Sort(values)
		all = append(all, name+": "+strings.Join(values, "; "))
	}
	return all
}

func orNone(value string) string {
	if value == "" {
		return "none"
	}
	return value
}

// maxNamed is how many nodes a line of text names.
const maxNamed = 3

// nodesText names nodes, or the first of them.
func nodesText(nodes []netip.Addr) string {
	if more := len(nodes) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", status.Join(nodes[:maxNamed], ", "), more)
	}
	return status.Join(nodes, ", ")
}

// tableDifferences describes the paths in which nodes contradict each other: those that
// are missing, lead to another address, or use another backend than the way back.
func (r *Report) tableDifferences() (all []string) {
	for i := range r.Nodes {
		from := &r.Nodes[i]
		if from.hello == nil {
			continue
		}
		for j := range r.Nodes {
			if i == j {
				continue
			}
			to := &r.Nodes[j]
			for _, s := range to.Subnets {
				p := from.path(s)
				switch {
				case p == nil:
					all = append(all, fmt.Sprintf("table: %s has no path to %s of %s", from.Node, s, to.Node))
				case p.Public.Is4() == to.Node.Is4() && p.Public != to.Node:
					all = append(all, fmt.Sprintf("table: %s sends packets for %s of %s to %s", from.Node, s, to.Node, p.Public))
				case i < j && to.hello != nil:
					if back := to.pathBack(from, s); back != nil && back.Backend != p.Backend {
						all = append(all, fmt.Sprintf("table: %s reaches %s over %s, but is reached over %s", from.Node, to.Node, p.Backend, back.Backend))
					}
				}
			}
		}
	}
	return all
}

// path returns how the node sends packets to a subnet; nil if it has no path.
func (n *NodeReport) path(s netip.Prefix) *Path {
	i := slices.IndexFunc(n.hello.Table, func(p Path) bool { return p.Subnet.Masked() == s.Masked() })
	if i < 0 {
		return nil
	}
	return &n.hello.Table[i]
}

// pathBack returns how the node sends packets to the subnet of another node that has the
// family of s.
func (n *NodeReport) pathBack(to *NodeReport, s netip.Prefix) *Path {
	for _, its := range to.Subnets {
		if its.Addr().Is4() == s.Addr().Is4() {
			return n.path(its)
		}
	}
	return nil
}
