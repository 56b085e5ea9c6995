package underlay

import (
	"regexp"
	"strings"
)

// containerPrefixes are the name prefixes of links that lead to containers or
// guests of this host, or are tunnels between nodes.
var containerPrefixes = []string{
	"flannel", "cni", "veth", // ours, and those that the bridge plugin creates
	"docker", "podman", "nerdctl", "lxc", "lxd", "virbr", "vnet",
	"cali", "tunl", "cilium", "weave", "vxlan.calico", "antrea-", "ovn-k8s-",
	"kube-", "cbr0", "nodelocaldns",
}

// dockerBridge matches the bridge of a user-defined Docker network. Just "br-"
// would also match "br-lan", the uplink of an OpenWrt router.
var dockerBridge = regexp.MustCompile(`^br-[0-9a-f]{12}$`)

// containerLink reports whether name is that of loopback or of a link of a
// container network. It checks only the name: the kind does not help, since the
// uplink of a node that is itself a container is a veth.
func containerLink(name string) bool {
	for _, p := range containerPrefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return name == "lo" || dockerBridge.MatchString(name)
}
