//go:build !nobpf

package kernelpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The ways to attach a program, as Path.How reports them.
const (
	viaTCX    = "TCX"
	viaFilter = "clsact"
)

// attach attaches the program, or replaces the one that an earlier process attached. The
// kernel exchanges them atomically, so each packet sees one of the two. Programs of
// others on the interface keep their places and see the packet first.
func (p *Path) attach(cfg *Config, h hook, program *ebpf.Program) error {
	err := link.ErrNotSupported
	if !cfg.clsact {
		err = p.attachTCX(cfg.pins, h, program)
		p.how = viaTCX
	}
	if errors.Is(err, link.ErrNotSupported) { // before Linux 6.6
		err = attachFilter(cfg.Tun, h, program)
		p.how = viaFilter
	}
	if err != nil {
		return fmt.Errorf("attach BPF program %s: %w", h.program, err)
	}
	return nil
}

func (p *Path) attachTCX(pins string, h hook, program *ebpf.Program) error {
	file := filepath.Join(pins, h.program)
	if pins != "" {
		replaced, err := replace(file, h, program)
		if replaced || err != nil {
			return err
		}
	}
	at := ebpf.AttachTCXIngress
	if h.egress {
		at = ebpf.AttachTCXEgress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: h.index, Program: program, Attach: at})
	if err != nil {
		return err
	}
	if pins == "" {
		p.links = append(p.links, l)
		return nil
	}
	if err := l.Pin(file); err != nil {
		return errors.Join(fmt.Errorf("pin %s: %w", file, err), l.Close())
	}
	return l.Close()
}

// replace replaces the program of the link that is pinned at file. If that link belongs
// to another interface, or to one that is gone, it is removed.
func replace(file string, h hook, program *ebpf.Program) (replaced bool, err error) {
	l, err := link.LoadPinnedLink(file, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", file, err)
	}
	defer l.Close()
	if info, err := l.Info(); err == nil {
		if tcx := info.TCX(); tcx != nil && int(tcx.Ifindex) == h.index && l.Update(program) == nil {
			return true, nil
		}
	}
	return false, l.Unpin()
}

// attachFilter attaches the program to the clsact queueing discipline of the interface,
// and creates the discipline if it is missing.
func attachFilter(tun string, h hook, program *ebpf.Program) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: h.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact queueing discipline: %w", err)
	}
	if err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: h.index, Parent: h.parent(), Handle: 1, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Fd: program.FD(), Name: filterName(tun, h.program), DirectAction: true,
	}); err != nil {
		return fmt.Errorf("set BPF filter: %w", err)
	}
	return nil
}

// attached returns an error if the program is no longer attached to any interface, for
// example because another program ran "tc qdisc del dev eth0 clsact". A process that
// takes over from this one may attach it to another interface.
func (p *Path) attached(h hook) error {
	switch {
	case p.how == viaFilter:
		return findFilter(p.cfg.Tun, h.program)
	case p.cfg.pins == "":
		return nil // the link is open
	}
	l, err := link.LoadPinnedLink(filepath.Join(p.cfg.pins, h.program), nil)
	if err != nil {
		return err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return err
	}
	if tcx := info.TCX(); tcx == nil || tcx.Ifindex == 0 {
		return errors.New("its link is attached to no interface")
	}
	return nil
}

// removeOthers removes what an earlier process attached elsewhere: to another underlay
// interface, or by the other method.
func (p *Path) removeOthers(cfg *Config, kept []hook) error {
	if p.how == viaFilter {
		return errors.Join(removeLinks(cfg.pins, nil), removeFilters(cfg.Tun, kept))
	}
	return errors.Join(removeLinks(cfg.pins, kept), removeFilters(cfg.Tun, nil))
}

// removeMaps unpins the maps.
func removeMaps(pins string) error {
	return errors.Join(remove(filepath.Join(pins, pathMapSubnets)), remove(filepath.Join(pins, pathMapPeers)))
}

// removeLinks unpins the links except those of the hooks kept.
func removeLinks(pins string, kept []hook) error {
	if pins == "" {
		return nil
	}
	var errs []error
	for _, program := range []string{pathProgEncapsulate, pathProgDecapsulate} {
		if !slices.ContainsFunc(kept, func(h hook) bool { return h.program == program }) {
			errs = append(errs, remove(filepath.Join(pins, program)))
		}
	}
	return errors.Join(errs...)
}
