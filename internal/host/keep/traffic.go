package keep

import "github.com/vishvananda/netlink"

// Traffic returns the sums of the kernel's counters of the kept VXLAN devices. TX is from
// pods to other nodes. It may be called from any goroutine.
func (k *Keeper) Traffic() (sum netlink.LinkStatistics) {
	for _, index := range k.vxlanIndexes() {
		link, err := k.nl.LinkByIndex(index)
		if err != nil {
			continue // Run finds out that the device is gone
		}
		s := link.Attrs().Statistics
		if s == nil {
			continue
		}
		sum.TxPackets += s.TxPackets
		sum.TxBytes += s.TxBytes
		sum.TxDropped += s.TxDropped
		sum.TxErrors += s.TxErrors
		sum.RxPackets += s.RxPackets
		sum.RxBytes += s.RxBytes
		sum.RxDropped += s.RxDropped
		sum.RxErrors += s.RxErrors
	}
	return sum
}
