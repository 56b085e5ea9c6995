package main

// configKeys describe the keys of the network configuration.
var configKeys = []entry{
	{"Network", "required with IPv4", "The IPv4 network that the nodes' pod subnets are cut from, for example `10.5.0.0/16`."},
	{"SubnetLen", "24, or 2 bits more than the network's", "Prefix length of a node's subnet."},
	{"SubnetMin", "the second subnet", "The first subnet that may be leased."},
	{"SubnetMax", "the last subnet", "The last subnet that may be leased."},
	{"EnableIPv4", "true", "Pods have IPv4 addresses."},
	{"EnableIPv6", "false", "Pods have IPv6 addresses."},
	{"IPv6Network", "required with IPv6", "The same as `Network` for IPv6."},
	{"IPv6SubnetLen", "64", "The same as `SubnetLen` for IPv6."},
	{"IPv6SubnetMin", "the second subnet", "The same as `SubnetMin` for IPv6."},
	{"IPv6SubnetMax", "the last subnet", "The same as `SubnetMax` for IPv6."},
	{"EnableNFTables", "false", "Firewall rules are made with nftables instead of iptables ([rules](rules.md))."},
	{"Backend", "`{\"Type\": \"udp\"}`", "What carries packets between nodes ([backends](backends.md))."},
}

// backendKeys describe the options of a backend.
var backendKeys = []entry{
	{"VNI", "1", "VXLAN network identifier, and the number in the devices' names. For `vxlan` and `auto`."},
	{"Port", "8472 with `vxlan` and `auto`, 8285 with `udp`", "UDP port that all nodes receive on."},
	{"UDPPort", "8285", "UDP port of the udp backend where `Type` is another one. Not one of flannel's."},
	{"MTU", "that of the interface", "MTU of the way between the nodes, from which the overhead is subtracted. Not for `host-gw`."},
	{"GBP", "false", "VXLAN Group Based Policy: the mark of a packet crosses the tunnel. For `vxlan` and `auto`; the same on all nodes."},
	{"Learning", "false", "The kernel learns FDB entries from frames that it receives. For `vxlan` and `auto`."},
	{"DirectRouting", "false", "Plain routes to peers on the same link, the tunnel to the others."},
}
