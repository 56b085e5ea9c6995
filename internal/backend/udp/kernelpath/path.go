//go:build !nobpf

package kernelpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

// Kernel behaviour without a feature that could be probed.
var (
	// vethGRO is the first kernel whose veth devices do GRO without an XDP program
	// (commit d3256efd8e8b). Without GRO the kernel path is slower than user space.
	vethGRO = tun.Version{Major: 5, Minor: 13}
	// decapIPv6 is the first kernel that changes the protocol of a packet from which
	// bpf_skb_adjust_room removes an IPv4 header (commit d219df60a70e).
	decapIPv6 = tun.Version{Major: 6, Minor: 3}
)

// adjustRoomDecapIPv6 is BPF_F_ADJ_ROOM_DECAP_L3_IPV6 of include/uapi/linux/bpf.h.
const adjustRoomDecapIPv6 = uint64(1 << 8)

// Path is the kernel's part of the udp backend. Its methods must not be called
// concurrently.
type Path struct {
	objects pathObjects
	cpus    int // number of values for each key of a per-CPU map
	pair    *pair
	links   []link.Link // closed by Close, which detaches programs that are not pinned
	cfg     Config
	hooks   []hook // where the programs are attached
	missed  int    // consecutive calls of Check that did not find all of them
	how     string
	// generation is the generation of the subnets in the programs. It is 1 when they are
	// loaded.
	generation uint32
}

// Open attaches the programs, in the network namespace of the calling thread. The
// devices of cfg must exist. What an earlier process left is taken over, so that packets
// of pods are carried without a gap. If Open fails, nothing is left in the kernel, neither
// its own objects nor those of earlier processes.
func Open(cfg Config) (*Path, error) {
	pins, err := pinDir(cfg.Tun)
	if err != nil {
		return nil, err
	}
	if err := mountBPF(); err != nil {
		return nil, err
	}
	_ = RemoveDead() // a failure concerns only what others have left
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return nil, err
	}
	cfg.pins = pins
	p, err := open(cfg)
	if err != nil {
		return nil, errors.Join(err, Remove(cfg.Tun))
	}
	return p, nil
}

func open(cfg Config) (_ *Path, err error) {
	p := &Path{generation: 1}
	spec, hooks, err := p.prepare(&cfg)
	if err != nil {
		return nil, err
	}
	if err := p.load(spec, cfg.pins); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	programs := map[string]*ebpf.Program{
		pathProgEncapsulate: p.objects.Encapsulate, pathProgDecapsulate: p.objects.Decapsulate,
	}
	for _, h := range hooks {
		if err := p.attach(&cfg, h, programs[h.program]); err != nil {
			return nil, err
		}
	}
	p.cfg, p.hooks = cfg, hooks
	return p, p.removeOthers(&cfg, hooks)
}

// prepare creates the pair of devices. It returns the programs with their constants set,
// and where to attach each.
func (p *Path) prepare(cfg *Config) (*ebpf.CollectionSpec, []hook, error) {
	if !cfg.Local.Is4() {
		return nil, nil, errors.New("the underlay is IPv6, which requires UDP checksums (RFC 8200 §8.1)")
	}
	if tun.Kernel().Before(vethGRO) {
		return nil, nil, fmt.Errorf("requires Linux %s or later", vethGRO)
	}
	device, err := net.InterfaceByName(cfg.Tun)
	if err != nil {
		return nil, nil, fmt.Errorf("look up interface %s: %w", cfg.Tun, err)
	}
	uplink, err := net.InterfaceByName(cfg.Underlay)
	if err != nil {
		return nil, nil, fmt.Errorf("look up interface %s: %w", cfg.Underlay, err)
	}
	if len(uplink.HardwareAddr) != macLen {
		return nil, nil, fmt.Errorf("interface %s is not an Ethernet interface", cfg.Underlay)
	}
	if p.cpus, err = ebpf.PossibleCPU(); err != nil {
		return nil, nil, fmt.Errorf("read number of CPUs: %w", err)
	}
	if p.pair, err = makePair(cfg.Tun); err != nil {
		return nil, nil, err
	}
	spec, err := loadPath()
	if err != nil {
		return nil, nil, err
	}
	if cfg.room > 0 {
		spec.Maps[pathMapPeers].MaxEntries = cfg.room
	}
	hooks := []hook{
		{pathProgDecapsulate, uplink.Index, false},
		{pathProgEncapsulate, device.Index, true},
	}
	for name, value := range cfg.constants(uplink, p.pair) {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, nil, fmt.Errorf("set constant %s of the BPF programs: %w", name, err)
		}
	}
	return spec, hooks, nil
}

// constants returns the values of the constants in the programs, by name.
func (cfg *Config) constants(uplink *net.Interface, p *pair) map[string]any {
	ports := cfg.SourcePorts
	if len(ports) == 0 {
		ports = []uint16{cfg.Port}
	}
	var sources [maxSourcePorts]uint16
	n := copy(sources[:], ports)
	for i := range sources {
		sources[i] = networkOrder(sources[i])
	}
	decap := adjustRoomDecapIPv6
	if tun.Kernel().Before(decapIPv6) {
		decap = 0
	}
	return map[string]any{
		pathVarUplink:          uint32(uplink.Index),
		pathVarFeed:            uint32(p.near.Index),
		pathVarFeedHeader:      p.header(),
		pathVarLocal:           endpointOf(cfg.Local),
		pathVarPort:            networkOrder(cfg.Port),
		pathVarSourcePorts:     sources,
		pathVarSourcePortCount: uint32(n),
		pathVarDecapIpv6:       decap,
	}
}

// maxSourcePorts is MAX_SOURCE_PORTS of bpf/maps.h.
const maxSourcePorts = 64

// networkOrder returns the number whose bytes in memory are port in network byte order.
func networkOrder(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

// endpointOf returns the number whose bytes in memory are the bytes of the address.
func endpointOf(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// load loads the programs and the maps, or opens the maps that are pinned.
func (p *Path) load(spec *ebpf.CollectionSpec, pins string) error {
	if pins == "" {
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinNone
		}
	}
	opts := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}}
	err := spec.LoadAndAssign(&p.objects, opts)
	if errors.Is(err, ebpf.ErrMapIncompatible) { // left by another version
		if err := removeMaps(pins); err != nil {
			return err
		}
		err = spec.LoadAndAssign(&p.objects, opts)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("load BPF programs: %w; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN", unix.EPERM)
	}
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) { // without the verifier's log
		return fmt.Errorf("load BPF programs: rejected by the kernel's verifier: %w", refused.Cause)
	}
	if err != nil {
		return fmt.Errorf("load BPF programs: %w", err)
	}
	return nil
}

// How returns the method by which the programs are attached: "TCX" or "clsact".
func (p *Path) How() string { return p.how }

// Check returns an error if an interface through which the programs deliver packets is
// gone, or if a program is not attached in two calls in a row. It also adapts to
// net.ipv4.conf.all.rp_filter, if /proc/sys can be written.
func (p *Path) Check() error {
	for _, end := range []*net.Interface{p.pair.near, p.pair.far} {
		now, err := net.InterfaceByIndex(end.Index)
		if err != nil {
			return fmt.Errorf("look up interface %s: %w", end.Name, err)
		}
		if now.Flags&net.FlagUp == 0 {
			return fmt.Errorf("interface %s is down", end.Name)
		}
	}
	_ = admitSources(p.pair.far.Name) // twill doctor reports a failure
	for _, h := range p.hooks {
		err := p.attached(h)
		if err == nil {
			continue
		}
		// A process that takes over from this one may be replacing it.
		if p.missed++; p.missed < 2 {
			return nil
		}
		return fmt.Errorf("BPF program %s: detached by another program: %w", h.program, err)
	}
	p.missed = 0
	return nil
}

// Close closes what Open opened. The programs continue to carry packets; Remove ends that.
func (p *Path) Close() error {
	errs := []error{p.objects.Close()}
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}
