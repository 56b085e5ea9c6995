package cni

import (
	"encoding/json"
	"maps"
	"net/netip"
)

// delegate is the configuration of the plugin that does the work.
type delegate map[string]json.RawMessage

// plugin returns the name of that plugin, or "" if the configuration names
// none.
func (d delegate) plugin() (name string) {
	_ = object(d).get("type", &name)
	return name
}

// text returns the configuration as JSON, with its keys in order.
func (d delegate) text() []byte { return encode(d) }

// encode returns v as JSON. It cannot fail: this package encodes only maps,
// lists, strings, numbers and JSON that was decoded before.
func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// setDefault sets a key that the user left out.
func (d delegate) setDefault(key string, value any) {
	if _, ok := d[key]; !ok {
		d[key] = encode(value)
	}
}

// delegateFor completes the user's delegate from the node's subnet file.
func (n *netConf) delegateFor(node *node) (delegate, error) {
	d := maps.Clone(n.Delegate)
	d["name"] = encode(n.Name)
	if n.CNIVersion != "" {
		d["cniVersion"] = encode(n.CNIVersion)
	}
	if n.RuntimeConfig != nil {
		d["runtimeConfig"] = encode(n.RuntimeConfig)
	}
	d.setDefault("type", "bridge")
	if d.plugin() == "bridge" {
		d.setDefault("isGateway", true)
	}
	d.setDefault("ipMasq", !node.ipMasq) // either the daemon or the bridge masquerades, not both
	d.setDefault("mtu", node.mtu)
	ipam, err := n.ipamFor(node)
	if err != nil {
		return nil, err
	}
	d["ipam"] = encode(ipam)
	return d, nil
}

// ipRange is an address range of the host-local plugin.
type ipRange struct {
	Subnet netip.Prefix `json:"subnet"`
}

// ipamFor completes the user's ipam object: a range for each family, and routes to
// all networks behind the user's own.
func (n *netConf) ipamFor(node *node) (object, error) {
	ipam := maps.Clone(n.IPAM)
	if ipam == nil {
		ipam = object{}
	}
	if _, ok := ipam["type"]; !ok {
		ipam["type"] = encode("host-local")
	}
	var ranges [][]ipRange
	for _, subnet := range node.subnets {
		ranges = append(ranges, []ipRange{{subnet}})
	}
	ipam["ranges"] = encode(ranges)
	var routes []json.RawMessage
	if err := ipam.get("routes", &routes); err != nil {
		return nil, invalid("ipam.routes: %v", err)
	}
	for _, network := range node.networks {
		routes = append(routes, encode(map[string]netip.Prefix{"dst": network}))
	}
	ipam["routes"] = encode(routes)
	return ipam, nil
}

// onCall adds the result of ADD to a saved configuration, as the runtime passes
// it at CHECK and DEL and in the version of this call.
func (n *netConf) onCall(d delegate) delegate {
	if len(n.PrevResult) == 0 {
		return d
	}
	d = maps.Clone(d)
	d["prevResult"] = n.PrevResult
	if n.CNIVersion != "" {
		d["cniVersion"] = encode(n.CNIVersion)
	}
	return d
}
