package kernelpath

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// hook is where a program is attached.
type hook struct {
	program string // its name
	index   int    // of the interface
	egress  bool   // it sees what leaves through the interface, not what arrives
}

func (h hook) parent() uint32 {
	if h.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// filterPriority is that of the filters, behind those with the kernel's defaults. Their
// handle is 1.
const filterPriority = 0xf1a0

// filterName returns the name of the filter with the program.
func filterName(tun, program string) string { return "twill/" + tun + "/" + program }

// removeFilters removes the filters for the TUN device from all interfaces except those
// of the hooks kept.
func removeFilters(tun string, kept []hook) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := netlink.FilterList(l, parent)
			if err != nil {
				continue // an interface without filters, or gone meanwhile
			}
			for _, f := range filters {
				b, ok := f.(*netlink.BpfFilter)
				if !ok || !strings.HasPrefix(b.Name, filterName(tun, "")) {
					continue
				}
				if !slices.ContainsFunc(kept, func(h hook) bool { return h.index == l.Attrs().Index && h.parent() == parent }) {
					errs = append(errs, netlink.FilterDel(f))
				}
			}
		}
	}
	return errors.Join(errs...)
}
