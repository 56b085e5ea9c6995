package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/lab/netlab"
)

// Path is one way to carry packets from one pod to the other.
type Path struct {
	Name  string // in --paths and JSON
	Title string
	// up creates the path on a fresh topology of two hosts.
	up func(context.Context, *netlab.Topology, Binaries) (*Connection, error)
	// loads are the loads under which the path is measured; nil means all.
	loads []string
}

// Paths are all paths, in the order of a table's rows.
var Paths = []Path{
	{"twill", "twill", twill(), nil},
	{"twill-1", "twill, one pair of threads", twill("--thread-pairs=1"), []string{"tcp1", "tcp4", "udp64"}},
	{"twill-plain", "twill, plain engine", twill("--tun-offload=off", "--udp-gso=off", "--udp-gro=off"), nil},
	{"twill-kernel", "twill, kernel path", kernelBackend.run("--kernel-path=tc"), nil},
	{"twill-vxlan", "twill, vxlan backend", vxlanBackend.run(), kernelLoads},
	{"twill-host-gw", "twill, host-gw backend", hostGWBackend.run(), kernelLoads},
	{report.Baseline, "kernel VXLAN", vxlan, nil},
	{"host-gw", "host-gw", hostGW, nil},
	{"wire", "bare wire", bareWire, nil},
	{"flannel-udp", "stock flannel udp", flannelUDP, nil},
	{"floor", "floor: TUN and UDP alone", floor(false), floorLoads},
	{"floor-plain", "floor, one packet per call", floor(true), []string{"tcp1", "tcp4", "udp64", "rr"}},
	wireguardPath,
	nebulaPath,
}

// kernelLoads are the loads for backends of twilld that leave packets to the kernel:
// enough to show that the daemon does not affect their cost.
var kernelLoads = []string{"ping", "tcp1", "tcp4", "udp64", "udpmtu", "rr"}

// floorLoads are the loads that the marks compare with the floor.
var floorLoads = []string{"tcp1", "tcp4", "tcp1r", "tcp4r", "udp64", "udp64-1", "rr"}

// encryptingLoads are the loads for paths that do more work than the others and are
// measured only for the order of magnitude.
var encryptingLoads = []string{"tcp1", "tcp4", "udp64", "udpmtu", "rr", "rr-load"}

// Binaries locates the programs that paths run.
type Binaries struct {
	Twilld     string
	FlannelUDP string // bench/peers/flannel
	Floor      string // bench/floor
	// Base is another twilld, which BasePath runs with BaseFlags besides the usual
	// flags. If it is empty, BasePath runs the same twilld.
	Base      string
	BaseFlags []string
}

// BasePath is twill with another build of twilld or with other flags, for comparison with
// path twill in the same rounds.
var BasePath = Path{report.Base, "twill, base", func(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
	bin.Twilld = cmp.Or(bin.Base, bin.Twilld)
	return twill(bin.BaseFlags...)(ctx, topo, bin)
}, nil}

// DefaultBinaries are those installed beside the running program: bin/twilld and
// bin/peers/flannel-udp for bin/twill-lab.
func DefaultBinaries() (Binaries, error) {
	self, err := os.Executable()
	if err != nil {
		return Binaries{}, fmt.Errorf("find the other programs: %w", err)
	}
	dir := filepath.Dir(self)
	return Binaries{
		Twilld:     filepath.Join(dir, "twilld"),
		FlannelUDP: filepath.Join(dir, "peers", "flannel-udp"),
		Floor:      filepath.Join(dir, "peers", "floor"),
	}, nil
}

// Up builds hosts, pods and wire, and the path between them. If it fails, it
// leaves nothing behind.
func (p Path) Up(ctx context.Context, opts netlab.Options, bin Binaries) (*Connection, error) {
	topo, err := netlab.NewTopology(opts)
	if err != nil {
		return nil, fmt.Errorf("path %s: %w", p.Name, err)
	}
	c, err := p.up(ctx, topo, bin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("path %s: %w", p.Name, err), topo.Close())
	}
	return c, nil
}

func vxlan(_ context.Context, topo *netlab.Topology, _ Binaries) (*Connection, error) {
	if err := topo.AddVXLAN(); err != nil {
		return nil, err
	}
	return between(topo)
}

func hostGW(_ context.Context, topo *netlab.Topology, _ Binaries) (*Connection, error) {
	if err := topo.AddHostGW(); err != nil {
		return nil, err
	}
	return between(topo)
}

// bareWire runs from host to host, without pods, bridges and routes: the
// ceiling set by the wire and the generator.
func bareWire(_ context.Context, topo *netlab.Topology, _ Binaries) (*Connection, error) {
	c, err := between(topo)
	if err != nil {
		return nil, err
	}
	for i, e := range []*Endpoint{&c.Client, &c.Server} {
		h := topo.Hosts[i]
		*e = Endpoint{h.NS, h.Addr}
	}
	return c, nil
}
