package vxlan

import "fmt"

// Before Linux 5.7 a packet that MASQUERADE --random-fully has changed leaves a
// VXLAN device with a wrong checksum, if the device need not compute it: services
// of a cluster cannot be reached from hosts (flannel-io/flannel#1279, where the
// remedy is "ethtool -K flannel.1 tx-checksum-ip-generic off";
// projectcalico/felix#2811, where the version is from).
const fixedMajor, fixedMinor = 5, 7

// checksumsBroken reports whether a kernel is one of those. Of a release that
// cannot be read nothing is assumed.
func checksumsBroken(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < fixedMajor || major == fixedMajor && minor < fixedMinor
}
