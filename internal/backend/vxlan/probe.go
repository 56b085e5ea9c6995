package vxlan

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/keep"
)

const (
	// probeName is the name of Probe's device. There is one name, so that no
	// more than one is left by processes that were killed in between.
	probeName = "twill-probe"
	// probePort is that of Probe's device, which is never up and so never
	// takes it. Devices in use are not likely to have it.
	probePort = 1
	// probeTries bounds how often another Probe on the host may come between.
	probeTries = 20
)

// Probe finds out whether this kernel and this container can make VXLAN devices:
// it makes one in the network namespace of the calling thread, and deletes it.
// The error says why not, and wraps unix.EOPNOTSUPP where the kernel has no
// VXLAN, unix.EPERM where the process lacks CAP_NET_ADMIN.
func Probe() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("probe VXLAN: open netlink socket: %w", err)
	}
	defer h.Close()
	for try := 0; ; try++ {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = probeName
		// The number of the try keeps it apart from a device that is there.
		err = h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: maxVNI - try, Port: probePort})
		if !errors.Is(err, unix.EEXIST) || try == probeTries {
			break
		}
		// Another Probe's, or what a killed one has left.
		if err := removeProbe(h); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("probe VXLAN: make a device: %w%s", err, keep.VXLANRemedy(err))
	}
	return removeProbe(h)
}

// removeProbe deletes Probe's device if it is there.
func removeProbe(h *netlink.Handle) error {
	link, err := h.LinkByName(probeName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // another Probe has deleted it
	}
	if err != nil {
		return fmt.Errorf("probe VXLAN: look up interface %s: %w", probeName, err)
	}
	if v, ok := link.(*netlink.Vxlan); !ok || v.Port != probePort {
		return fmt.Errorf("probe VXLAN: interface %s exists and is not twilld's (%s): delete it (ip link delete %s)", probeName, link.Type(), probeName)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("probe VXLAN: delete interface %s: %w; do it by hand: ip link delete %s", probeName, err, probeName)
	}
	return nil
}
