package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/twillnet/twill/lease"
)

// entry is the part of a Node object that concerns this network.
type entry struct {
	name        string
	podCIDRs    []string
	annotations map[string]string // only those of keys
	// up is when a flannel last set the node's condition NetworkUnavailable; zero
	// if none did, or another program has set it since.
	up time.Time
	// unavailable is the status of that condition: "", "True", "False" or
	// "Unknown".
	unavailable string
}

const (
	// noIPv4 is what stock flannel writes for a node without IPv4.
	noIPv4 = "0.0.0.0"
	// noData is what stock flannel writes for a backend without data.
	noData = "null"
)

// subnets returns the pod subnets that are assigned to the node, in any order of
// podCIDRs.
func (e *entry) subnets() (subnet, ipv6Subnet netip.Prefix, err error) {
	if len(e.podCIDRs) > 2 {
		return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs has %d entries, %s; want one, or one of each address family", len(e.podCIDRs), strings.Join(e.podCIDRs, ", "))
	}
	for _, text := range e.podCIDRs {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs: %q is no subnet", text)
		}
		to := &subnet
		if p.Addr().Is6() {
			to = &ipv6Subnet
		}
		if to.IsValid() {
			return subnet, ipv6Subnet, fmt.Errorf("spec.podCIDRs has two of one address family, %s", strings.Join(e.podCIDRs, ", "))
		}
		*to = p.Masked()
	}
	return subnet, ipv6Subnet, nil
}

// managed reports whether the node takes part in the network.
func (k *keys) isManaged(e *entry) bool { return e.annotations[k.managed] == "true" }

// lease returns the lease described by the annotations of a node. The error
// names the annotation, or the property of the node, that is invalid.
func (k *keys) lease(e *entry) (lease.Lease, error) {
	var l lease.Lease
	var err error
	if l.Subnet, l.IPv6Subnet, err = e.subnets(); err != nil {
		return l, err
	}
	if len(l.Subnets()) == 0 {
		return l, errors.New("spec.podCIDRs is empty")
	}
	l.BackendType = e.annotations[k.kind]
	if l.PublicIP, err = k.address(e, k.public, true); err != nil {
		return l, err
	}
	if l.PublicIPv6, err = k.address(e, k.publicV6, false); err != nil {
		return l, err
	}
	if !l.PublicIP.IsValid() && !l.PublicIPv6.IsValid() {
		return l, fmt.Errorf("annotations %s and %s: no address", k.public, k.publicV6)
	}
	for _, d := range []struct {
		key string
		to  *json.RawMessage
	}{{k.data, &l.BackendData}, {k.v6Data, &l.BackendV6Data}} {
		switch text := e.annotations[d.key]; {
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

// address reads an annotation that contains an address. It returns the invalid
// address if there is none.
func (k *keys) address(e *entry, key string, ipv4 bool) (netip.Addr, error) {
	text := e.annotations[key]
	if text == "" || text == noIPv4 {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Is4() != ipv4 || a.Is4In6() || a.Zone() != "" {
		kind := "IPv6"
		if ipv4 {
			kind = "IPv4"
		}
		return netip.Addr{}, fmt.Errorf("annotation %s: %q is no %s address", key, brief(text), kind)
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
