package vxlan

import "fmt"

// Before Linux 5.7, a packet rewritten by MASQUERADE --random-fully leaves a
// VXLAN device with a wrong checksum if the device offloads checksums, so
// services of the cluster cannot be reached from hosts
// (flannel-io/flannel#1279, where the workaround is "ethtool -K flannel.1
// tx-checksum-ip-generic off"; the version is from projectcalico/felix#2811).
const fixedMajor, fixedMinor = 5, 7

// checksumsBroken reports whether a kernel release has this bug. A release that
// cannot be parsed is assumed not to have it.
func checksumsBroken(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < fixedMajor || major == fixedMajor && minor < fixedMinor
}
