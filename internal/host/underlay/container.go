package underlay

import (
	"regexp"
	"strings"
)

// containerPrefixes begin the names of links that lead to this host's own
// containers or guests, or are a tunnel between nodes.
var containerPrefixes = []string{
	"flannel", "cni", "veth", // ours, and what the bridge plugin makes
	"docker", "podman", "nerdctl", "lxc", "lxd", "virbr", "vnet",
	"cali", "tunl", "cilium", "weave", "vxlan.calico", "antrea-", "ovn-k8s-",
	"kube-", "cbr0", "nodelocaldns",
}

// dockerBridge is the name of the bridge of a user-defined Docker network. Just
// "br-" would hit "br-lan", the uplink of an OpenWrt router.
var dockerBridge = regexp.MustCompile(`^br-[0-9a-f]{12}$`)

// containerLink says whether name is that of loopback or of a link that a
// container network made. It goes by the name only: the kind says nothing, as
// the uplink of a node that is itself a container is a veth.
func containerLink(name string) bool {
	for _, p := range containerPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return name == "lo" || dockerBridge.MatchString(name)
}
