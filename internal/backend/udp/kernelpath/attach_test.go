//go:build !nobpf

package kernelpath

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// foreign is another program, not of twill, that looks at packets and leaves them.
func foreign(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	pass := int32(-1) // TCX_NEXT, and TC_ACT_UNSPEC
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// hookKind is a way to attach programs to the ingress of eth0.
type hookKind struct {
	name   string
	clsact bool
	attach func(eth0 int, priority uint16, p *ebpf.Program, name string) error
	list   func(eth0 int) ([]string, error) // the names of the programs there, in their order
}

var hookKinds = []hookKind{
	{viaTCX, false, func(eth0 int, _ uint16, p *ebpf.Program, _ string) error {
		// The namespace's end detaches it.
		return link.RawAttachProgram(link.RawAttachProgramOptions{Target: eth0, Program: p, Attach: ebpf.AttachTCXIngress})
	}, func(eth0 int) (names []string, err error) {
		found, err := link.QueryPrograms(link.QueryOptions{Target: eth0, Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return nil, err
		}
		for _, f := range found.Programs {
			p, err := ebpf.NewProgramFromID(f.ID)
			if err != nil {
				return nil, err
			}
			info, err := p.Info()
			_ = p.Close()
			if err != nil {
				return nil, err
			}
			names = append(names, info.Name)
		}
		return names, nil
	}},
	{viaFilter, true, func(eth0 int, priority uint16, p *ebpf.Program, name string) error {
		qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: eth0, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
		if err := netlink.QdiscReplace(qdisc); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: eth0, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: priority, Protocol: unix.ETH_P_ALL},
			Fd:          p.FD(), Name: name, DirectAction: true,
		})
	}, func(eth0 int) (names []string, err error) {
		l, err := netlink.LinkByIndex(eth0)
		if err != nil {
			return nil, err
		}
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		for _, f := range filters {
			names = append(names, f.(*netlink.BpfFilter).Name)
		}
		return names, err
	}},
}

// Those that came before ours see packets first, those that came later last, whether ours
// is attached, replaced by the next process, or removed.
func TestProgramsOfOthersKeepTheirPlaces(t *testing.T) {
	for _, k := range hookKinds {
		t.Run(k.name, func(t *testing.T) {
			ns := netlabtest.Namespace(t, "host")
			first, last := foreign(t, "first"), foreign(t, "last")
			if err := ns.Do(func() error { return k.keepPlaces(first, last) }); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// keepPlaces runs in a namespace of its own.
func (k *hookKind) keepPlaces(first, last *ebpf.Program) error {
	if err := addLinks(); err != nil {
		return err
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	expect := func(when string, want ...string) error {
		got, err := k.list(eth0.Index)
		if err == nil && !slices.Equal(got, want) {
			err = fmt.Errorf("%s: programs %q, want %q", when, got, want)
		}
		return err
	}
	ours := pathProgDecapsulate
	if k.clsact {
		ours = filterName("flannel0", ours)
	}
	if err := k.attach(eth0.Index, 1, first, "first"); err != nil {
		return err
	}
	defer Remove("flannel0")
	for i := range 3 {
		p, err := Open(Config{Tun: "flannel0", Underlay: "eth0", Local: here, Port: testPort, clsact: k.clsact})
		if err != nil {
			return err
		}
		if i == 0 {
			if err := expect("attached", "first", ours); err != nil {
				return err
			}
			if err := k.attach(eth0.Index, filterPriority+1, last, "last"); err != nil {
				return err
			}
		}
		if err := p.Close(); err != nil {
			return err
		}
		if err := expect("attached or replaced, and closed", "first", ours, "last"); err != nil {
			return err
		}
	}
	if err := Remove("flannel0"); err != nil {
		return err
	}
	return expect("removed", "first", "last")
}

// The log is for those who write programs, and some hundred lines.
// Another program may remove ours, such as "tc qdisc del dev eth0 clsact": it is noticed, so
// that they are attached again.
func TestProgramThatAnotherDetachesIsMissed(t *testing.T) {
	for _, k := range hookKinds {
		for _, program := range []string{pathProgEncapsulate, pathProgDecapsulate} {
			t.Run(k.name+" "+program, func(t *testing.T) {
				ns := netlabtest.Namespace(t, "host")
				if err := ns.Do(func() error { return k.missProgram(program) }); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// missProgram runs in a namespace of its own.
func (k *hookKind) missProgram(program string) error {
	if err := addLinks(); err != nil {
		return err
	}
	defer Remove("flannel0")
	for range 2 { // what Open attaches again is not missed
		p, err := Open(Config{Tun: "flannel0", Underlay: "eth0", Local: here, Port: testPort, clsact: k.clsact})
		if err != nil {
			return err
		}
		if err := p.Check(); err != nil {
			return err
		}
		i := slices.IndexFunc(p.hooks, func(h hook) bool { return h.program == program })
		if err := k.detach(p, p.hooks[i]); err != nil {
			return err
		}
		if err := p.Check(); err != nil {
			return fmt.Errorf("a process that takes over may be replacing the program: %w", err)
		}
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), program) {
			return fmt.Errorf("the program is detached, and Check returns %v", err)
		}
		if err := p.Close(); err != nil {
			return err
		}
	}
	return nil
}

// detach detaches a program of p.
func (k *hookKind) detach(p *Path, h hook) error {
	if k.clsact {
		return netlink.QdiscDel(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: h.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}})
	}
	return os.Remove(filepath.Join(p.cfg.pins, h.program))
}

func TestRefusalOfTheVerifierIsReportedWithoutItsLog(t *testing.T) {
	netlabtest.Root(t)
	spec, err := loadPath()
	if err != nil {
		t.Fatal(err)
	}
	spec.Programs[pathProgDecapsulate].Instructions = asm.Instructions{asm.Return()} // of no value
	p := new(Path)
	err = p.load(spec, "")
	if err == nil {
		p.Close()
		t.Fatal("the kernel has accepted a program that returns a register it never set")
	}
	const want = "load BPF programs: rejected by the kernel's verifier: permission denied"
	if err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}
