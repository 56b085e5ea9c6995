package cni

import (
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
)

// netConf is the plugin's configuration, with flannel's keys. Values that are
// only passed on are kept as raw text, so that numbers and unknown keys reach the
// delegate unchanged.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	SubnetFile string `json:"subnetFile"`
	DataDir    string `json:"dataDir"`

	Delegate      delegate `json:"delegate"`
	IPAM          object   `json:"ipam"`
	RuntimeConfig object   `json:"runtimeConfig"`

	// Only at CHECK and DEL.
	PrevResult json.RawMessage `json:"prevResult"`
	// Only at GC.
	ValidAttachments []types.GCAttachment `json:"cni.dev/valid-attachments"`
}

// object is a JSON object whose values are kept as raw text.
type object map[string]json.RawMessage

// parseNetConf reads the configuration and checks what can be checked without
// the subnet file.
func parseNetConf(text []byte) (*netConf, error) {
	n := &netConf{SubnetFile: "/run/flannel/subnet.env", DataDir: "/var/lib/cni/flannel"}
	if err := json.Unmarshal(text, n); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+err.Error(), "")
	}
	if n.Delegate == nil {
		n.Delegate = delegate{}
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := n.Delegate[key]; ok {
			return nil, invalid("delegate.%s is set by this plugin and must be absent; put an ipam object beside delegate", key)
		}
	}
	if raw, ok := n.Delegate["type"]; ok && n.Delegate.plugin() == "" {
		return nil, invalid("delegate.type is %s; want the name of a plugin as a string", raw)
	}
	var routes []types.Route
	if err := n.IPAM.get("routes", &routes); err != nil {
		return nil, invalid("ipam.routes: %v; want a list of objects with dst and gw", err)
	}
	return n, nil
}

// get decodes the value of key into v, and leaves v unchanged if the key is
// absent.
func (o object) get(key string, v any) error {
	raw, ok := o[key]
	if !ok {
		return nil
	}
	return json.Unmarshal(raw, v)
}

// present returns the configuration that an ADD would pass to the delegate now.
func (n *netConf) present() (delegate, error) {
	node, err := readNode(n.SubnetFile)
	if err != nil {
		return nil, err
	}
	return n.delegateFor(node)
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
