package vxlan

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/keep"
)

const (
	// probeName is the name of Probe's device. It is fixed so that killed
	// processes leave at most one device behind.
	probeName = "twill-probe"
	// probePort is the port of Probe's device, which is never up and so never
	// binds it. Real devices are unlikely to use it.
	probePort = 1
	// probeTries bounds how often concurrent Probes on the host may interfere.
	probeTries = 20
)

// Probe finds out whether VXLAN devices can be created in this kernel and
// container: it creates one in the network namespace of the calling thread, and
// deletes it. The error wraps unix.EOPNOTSUPP if the kernel has no VXLAN, and
// unix.EPERM if the process lacks CAP_NET_ADMIN.
func Probe() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("probe VXLAN: open netlink socket: %w", err)
	}
	defer h.Close()
	for try := 0; ; try++ {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = probeName
		// Each try has a VNI of its own, in case an existing device uses the
		// last one.
		err = h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: maxVNI - try, Port: probePort})
		if !errors.Is(err, unix.EEXIST) || try == probeTries {
			break
		}
		// The device is that of a concurrent Probe, or of a killed one.
		if err := removeProbe(h); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("probe VXLAN: create device: %w%s", err, keep.VXLANRemedy(err))
	}
	return removeProbe(h)
}

// removeProbe deletes Probe's device if it exists.
func removeProbe(h *netlink.Handle) error {
	link, err := h.LinkByName(probeName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // a concurrent Probe deleted it
	}
	if err != nil {
		return fmt.Errorf("probe VXLAN: look up interface %s: %w", probeName, err)
	}
	if v, ok := link.(*netlink.Vxlan); !ok || v.Port != probePort {
		return fmt.Errorf("probe VXLAN: interface %s exists and is not twilld's (%s): delete it (ip link delete %s)", probeName, link.Type(), probeName)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("probe VXLAN: delete interface %s: %w; delete it with 'ip link delete %s'", probeName, err, probeName)
	}
	return nil
}
