// Package ports finds the kernel device that holds a UDP port. Such a port
// belongs to no process, so ss(8) and /proc/net/udp show it without an owner,
// or not at all.
package ports

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// Device returns the tunnel device that receives on a UDP port in the network
// namespace of the calling thread. It returns nil if there is none or it cannot
// be determined. It does not detect ports of WireGuard devices.
func Device(port int) netlink.Link {
	links, err := netlink.LinkList()
	if err != nil {
		return nil
	}
	for _, l := range links {
		switch l := l.(type) {
		case *netlink.Vxlan:
			if l.Port == port && up(l) {
				return l
			}
		case *netlink.Geneve:
			if int(l.Dport) == port && up(l) {
				return l
			}
		case *netlink.BareUDP:
			if int(l.Port) == port && up(l) {
				return l
			}
		}
	}
	return nil
}

// up reports whether a device may hold its port, which is bound when the device
// comes up.
func up(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 }

// Holder describes what holds a UDP port that is in use, for a message: a
// device or a process, with the command that removes or shows it.
func Holder(port int) string {
	if l := Device(port); l != nil {
		name := l.Attrs().Name
		return fmt.Sprintf("the kernel's %s device %s holds it; delete the device with 'ip link delete %s'", l.Type(), name, name)
	}
	return fmt.Sprintf("find the process that holds it with 'ss -lunp sport = :%d'", port)
}
