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
	egress  bool   // the program sees packets that leave through the interface, not those that arrive
}

func (h hook) parent() uint32 {
	if h.egress {
		return netlink.HANDLE_MIN_EGRESS
	}
	return netlink.HANDLE_MIN_INGRESS
}

// filterPriority is the priority of the filters, which puts them behind those with the
// kernel's default priorities. Their handle is 1.
const filterPriority = 0xf1a0

// filterName returns the name of the filter with the program.
func filterName(tun, program string) string { return "twill/" + tun + "/" + program }

// findFilter returns an error if no interface has the filter with the program.
func findFilter(tun, program string) error {
	found := false
	err := eachFilter(func(f *netlink.BpfFilter) error {
		found = found || f.Name == filterName(tun, program)
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("no interface has the filter %s", filterName(tun, program))
	}
	return err
}

// eachFilter calls do for the BPF filters of all interfaces.
func eachFilter(do func(*netlink.BpfFilter) error) error {
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
				if b, ok := f.(*netlink.BpfFilter); ok {
					errs = append(errs, do(b))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// removeFilters removes the filters for the TUN device from all interfaces except those
// of the hooks kept.
func removeFilters(tun string, kept []hook) error {
	return eachFilter(func(f *netlink.BpfFilter) error {
		isKept := slices.ContainsFunc(kept, func(h hook) bool { return h.index == f.LinkIndex && h.parent() == f.Parent })
		if isKept || !strings.HasPrefix(f.Name, filterName(tun, "")) {
			return nil
		}
		if err := netlink.FilterDel(f); err != nil {
			return fmt.Errorf("delete filter %s: %w", f.Name, err)
		}
		return nil
	})
}
