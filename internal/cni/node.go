package cni

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/twillnet/twill/lease"
)

// node is the content of the subnet file.
type node struct {
	networks []netip.Prefix // of all pods: IPv4, then IPv6, without duplicates
	subnets  []netip.Prefix // of this node's pods, at most one of each family
	mtu      uint32         // of the pods' interfaces, bytes
	ipMasq   bool           // the daemon masquerades
}

// readNode reads the subnet file.
func readNode(path string) (*node, error) {
	v := map[string]string{}
	err := lease.ReadVariables(path, func(name, value string) error {
		v[name] = value
		return nil
	})
	if err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, err.Error(),
			"flanneld or twilld writes it once the node has a subnet: check the log of its pod on this node")
	}
	if missing := missingFrom(v); len(missing) > 0 {
		return nil, fmt.Errorf("%s is missing %s", path, strings.Join(missing, ", "))
	}
	n := &node{ipMasq: v["FLANNEL_IPMASQ"] == "true"}
	for _, family := range []string{"FLANNEL_", "FLANNEL_IPV6_"} {
		if err := n.addFamily(family, v); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	mtu, err := strconv.ParseUint(v["FLANNEL_MTU"], 10, 32)
	if err != nil {
		return nil, fmt.Errorf("%s: FLANNEL_MTU: %w", path, err)
	}
	n.mtu = uint32(mtu)
	return n, nil
}

// missingFrom returns the required variables that are missing. One family is
// enough; if both are missing, all four names are returned.
func missingFrom(v map[string]string) (names []string) {
	for _, oneOf := range [][]string{
		{"FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"},
		{"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"},
		{"FLANNEL_MTU"},
		{"FLANNEL_IPMASQ"},
	} {
		if !slices.ContainsFunc(oneOf, func(name string) bool { return v[name] != "" }) {
			names = append(names, oneOf...)
		}
	}
	return names
}

// addFamily adds the networks and the subnet of the variables with that prefix.
func (n *node) addFamily(prefix string, v map[string]string) error {
	if list := v[prefix+"NETWORK"]; list != "" {
		for _, text := range strings.Split(list, ",") {
			network, err := netip.ParsePrefix(text)
			if err != nil {
				return fmt.Errorf("%sNETWORK: %w", prefix, err)
			}
			if network = network.Masked(); !slices.Contains(n.networks, network) {
				n.networks = append(n.networks, network)
			}
		}
	}
	if text := v[prefix+"SUBNET"]; text != "" {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%sSUBNET: %w", prefix, err)
		}
		n.subnets = append(n.subnets, subnet.Masked())
	}
	return nil
}

// has returns an error if d, made by an earlier ADD, allocates addresses from a
// subnet that is no longer this node's: no other node routes to such a container.
func (n *node) has(d delegate) error {
	var ipam struct {
		Ranges [][]ipRange `json:"ranges"`
	}
	if err := object(d).get("ipam", &ipam); err != nil {
		return fmt.Errorf("saved configuration: ipam: %w", err)
	}
	for _, set := range ipam.Ranges {
		for _, r := range set {
			if !slices.Contains(n.subnets, r.Subnet) {
				return types.NewError(types.ErrInvalidNetworkConfig,
					fmt.Sprintf("the container's addresses are from %s, but this node now has %v", r.Subnet, n.subnets),
					"delete the pod, so that it is recreated")
			}
		}
	}
	return nil
}
