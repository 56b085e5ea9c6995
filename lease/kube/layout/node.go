package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/twillnet/twill/lease"
)

// Object is the relevant part of the JSON of a Kubernetes Node object (Node of
// core/v1).
type Object struct {
	Metadata struct {
		Name, ResourceVersion string
		Annotations           map[string]string
	}
	Spec struct {
		PodCIDR  string
		PodCIDRs []string
	}
	Status struct{ Conditions []Condition }
}

// Condition is one of the conditions of a Node object.
type Condition struct {
	Type, Status, Reason string
	LastHeartbeatTime    time.Time // zero if null
}

// The type and reason of the condition that stock flannel writes:
const (
	ConditionType = "NetworkUnavailable"
	UpReason      = "FlannelIsUp"
)

// Node is the part of a Node object that concerns this network.
type Node struct {
	Name        string
	PodCIDRs    []string
	Annotations map[string]string // only those of Keys
	// Up is when flannel or twill last set the node's condition NetworkUnavailable;
	// zero if neither did, or if another program has set it since.
	Up time.Time
	// Unavailable is the status of that condition: "", "True", "False" or
	// "Unknown".
	Unavailable string
	// Version is the object's resourceVersion.
	Version string
}

// ReadNodes reads the JSON of a list of Node objects.
func (k *Keys) ReadNodes(text []byte) ([]*Node, error) {
	var list struct{ Items []Object }
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("decode list of nodes: %w", err)
	}
	nodes := make([]*Node, len(list.Items))
	for i := range list.Items {
		nodes[i] = k.Node(&list.Items[i])
	}
	return nodes, nil
}

// Node returns the relevant part of an object. It shares no map with it.
func (k *Keys) Node(o *Object) *Node {
	n := &Node{Name: o.Metadata.Name, Version: o.Metadata.ResourceVersion, PodCIDRs: o.Spec.PodCIDRs, Annotations: k.Trim(o.Metadata.Annotations)}
	if len(n.PodCIDRs) == 0 && o.Spec.PodCIDR != "" {
		n.PodCIDRs = []string{o.Spec.PodCIDR}
	}
	for _, c := range o.Status.Conditions {
		if c.Type == ConditionType {
			n.Unavailable = c.Status
			if c.Reason == UpReason {
				n.Up = c.LastHeartbeatTime
			}
		}
	}
	return n
}

// Trim returns a new map with the annotations that Keys name.
func (k *Keys) Trim(all map[string]string) map[string]string {
	m := map[string]string{}
	for _, key := range k.all() {
		if v, ok := all[key]; ok {
			m[key] = v
		}
	}
	return m
}

const (
	// noIPv4 is what stock flannel writes for a node without IPv4.
	noIPv4 = "0.0.0.0"
	// noData is what stock flannel writes for a backend without data.
	noData = "null"
)

// ErrNoPodCIDR reports that the cluster has assigned no subnet to a node.
var ErrNoPodCIDR = errors.New("spec.podCIDRs is empty")

// Subnets returns the pod subnets that are assigned to the node, whatever their order
// in podCIDRs.
func (e *Node) Subnets() (subnet, ipv6Subnet netip.Prefix, err error) {
	if len(e.PodCIDRs) > 2 {
		return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs has %d entries, %s; want one, or one of each address family", len(e.PodCIDRs), strings.Join(e.PodCIDRs, ", "))
	}
	for _, text := range e.PodCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs: %q is not a subnet", text)
		}
		to := &subnet
		if p.Addr().Is6() {
			to = &ipv6Subnet
		}
		if to.IsValid() {
			return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs has two subnets of one address family, %s", strings.Join(e.PodCIDRs, ", "))
		}
		*to = p.Masked()
	}
	return subnet, ipv6Subnet, nil
}

// isManaged reports whether the node takes part in the network.
func (k *Keys) isManaged(e *Node) bool { return e.Annotations[k.managed] == "true" }

// Lease returns the lease described by the annotations of a node. The error
// names the annotation, or the property of the node, that is invalid.
func (k *Keys) Lease(e *Node) (lease.Lease, error) {
	var l lease.Lease
	var err error
	if l.Subnet, l.IPv6Subnet, err = e.Subnets(); err != nil {
		return l, err
	}
	if len(l.Subnets()) == 0 {
		return l, ErrNoPodCIDR
	}
	l.BackendType = e.Annotations[k.kind]
	if l.PublicIP, err = k.address(e, k.public, true); err != nil {
		return l, err
	}
	if l.PublicIPv6, err = k.address(e, k.publicV6, false); err != nil {
		return l, err
	}
	if !l.PublicIP.IsValid() && !l.PublicIPv6.IsValid() {
		return l, fmt.Errorf("annotations %s and %s: neither has an address", k.public, k.publicV6)
	}
	for _, d := range []struct {
		key string
		to  *json.RawMessage
	}{{k.data, &l.BackendData}, {k.v6Data, &l.BackendV6Data}} {
		switch text := e.Annotations[d.key]; {
		case text == "" || text == noData:
		case !json.Valid([]byte(text)):
			return l, fmt.Errorf("annotation %s: %q is not JSON", d.key, brief(text))
		default:
			*d.to = json.RawMessage(text)
		}
	}
	x, err := k.extrasOf(e)
	if err != nil {
		return l, err
	}
	l.BackendData = merge(l.BackendData, x.BackendData)
	l.BackendV6Data = merge(l.BackendV6Data, x.BackendV6Data)
	return l, nil
}

// NodeAddrs returns the addresses with which users have annotated a node to choose
// its interface; invalid addresses if there are none.
func (k *Keys) NodeAddrs(e *Node) (ipv4, ipv6 netip.Addr, err error) {
	if ipv4, err = k.address(e, k.node, true); err == nil {
		ipv6, err = k.address(e, k.nodeV6, false)
	}
	return ipv4, ipv6, err
}

// NodeAddrsText returns the annotations that NodeAddrs reads, for comparison.
func (k *Keys) NodeAddrsText(e *Node) string {
	return e.Annotations[k.node] + " " + e.Annotations[k.nodeV6]
}

// address reads an annotation that contains an address at which other nodes can reach
// the node. It returns the invalid address if there is none.
func (k *Keys) address(e *Node, key string, ipv4 bool) (netip.Addr, error) {
	text := e.Annotations[key]
	if text == "" || text == noIPv4 {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Is4() != ipv4 || a.Is4In6() || a.Zone() != "" {
		kind := "IPv6"
		if ipv4 {
			kind = "IPv4"
		}
		return netip.Addr{}, fmt.Errorf("annotation %s: %q is not an %s address", key, brief(text), kind)
	}
	if err := lease.CheckPublic(a); err != nil {
		return netip.Addr{}, fmt.Errorf("annotation %s: %w", key, err)
	}
	return a, nil
}

// brief shortens text written by others to fit into a message.
func brief(s string) string {
	const most = 60
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
