package doctor

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp/kernelpath"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// works are the probes of a kernel with all backends.
var works = backend.Probes{VXLAN: func(int) error { return nil }, UDP: func() error { return nil }}

// sh runs a command of the shell in ns.
func sh(t *testing.T, ns *netlab.Namespace, command string) {
	t.Helper()
	if out, err := ns.Command(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// ofCheck returns the findings of a check.
func ofCheck(findings []Finding, check string) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Check != check })
}

func TestPreflight(t *testing.T) {
	eth0 := underlay.Options{Iface: []string{"eth0"}}
	both := []backend.Kind{backend.VXLAN, backend.UDP}
	noVXLAN := backend.Probes{VXLAN: func(int) error { return errors.New("operation not supported") }, UDP: works.UDP}
	nothing := backend.Probes{VXLAN: noVXLAN.VXLAN, UDP: func() error { return errors.New("no such device") }}
	for _, tt := range []struct {
		name   string
		plan   Plan
		probes backend.Probes
		fault  func(t *testing.T, ns *netlab.Namespace, h *host)
		check  string
		level  Level
		text   string
	}{
		{"nothing wrong", Plan{Backends: both, Any: true, Underlay: eth0}, works, nil, "underlay", OK, "eth0 (192.0.2.1, MTU 1500)"},
		{"no VXLAN, but udp", Plan{Backends: both, Any: true, Underlay: eth0}, noVXLAN, nil, "backends", Warn, "vxlan cannot be used: operation not supported"},
		{"no VXLAN, and nothing else wanted", Plan{Backends: both[:1], Underlay: eth0}, noVXLAN, nil, "backends", Bad, "vxlan cannot be used: operation not supported"},
		{"no backend", Plan{Backends: both, Any: true, Underlay: eth0}, nothing, nil, "backends", Bad, "no backend can be used"},
		{"no TUN device", Plan{Backends: both[1:], Underlay: eth0}, works, func(_ *testing.T, _ *netlab.Namespace, h *host) { h.tun = "/nonexistent/tun" }, "tun", Bad, "open /nonexistent/tun"},
		{"no TUN device, and none needed", Plan{Backends: both[:1], Underlay: eth0}, works, func(_ *testing.T, _ *netlab.Namespace, h *host) { h.tun = "/nonexistent/tun" }, "tun", OK, "not needed"},
		{"no default route", Plan{Backends: both}, works, nil, "underlay", Bad, "default route"},
		{"port taken", Plan{Backends: both, Underlay: eth0}, works, func(t *testing.T, ns *netlab.Namespace, _ *host) {
			c, err := ns.ListenPacket("udp4", "0.0.0.0:8285")
			testkit.Must(t, err)
			t.Cleanup(func() { c.Close() })
		}, "udp-port", Bad, "UDP port 8285 of udp is in use"},
		{"port of a device", Plan{Backends: both, Underlay: eth0}, works, func(t *testing.T, ns *netlab.Namespace, _ *host) {
			sh(t, ns, "ip link add other up type vxlan id 7 dstport 8472")
		}, "udp-port", Bad, "UDP port 8472 of vxlan is in use; the kernel's vxlan device other holds it"},
		{"forwarding off", Plan{Backends: both, Underlay: eth0}, works, func(t *testing.T, ns *netlab.Namespace, _ *host) {
			sh(t, ns, "sysctl -w net.ipv4.ip_forward=0")
		}, "forwarding", Bad, "ip_forward is 0"},
		{"kernel path", Plan{Backends: both[1:], Underlay: eth0, KernelPath: true}, works, nil, "kernel-path", OK, "the self-test passed"},
		{"kernel path without forwarding", Plan{Backends: both[1:], Underlay: eth0, KernelPath: true}, works, func(t *testing.T, ns *netlab.Namespace, _ *host) {
			sh(t, ns, "sysctl -w net.ipv4.conf.eth0.forwarding=0")
		}, "kernel-path", Warn, "net/ipv4/conf/eth0/forwarding is 0"},
		{"kernel path without IPv4", Plan{Backends: both[1:], Underlay: eth0, KernelPath: true}, works, func(t *testing.T, ns *netlab.Namespace, _ *host) {
			sh(t, ns, "ip address flush dev eth0")
		}, "kernel-path", Warn, "needs an underlay with IPv4"},
		{"a daemon runs", Plan{Backends: both, Underlay: eth0, Daemon: &status.Document{Version: "v1", PID: 7, Backends: []string{"udp", "vxlan"}}}, works, nil, "running", Warn, "pid 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ns := netlabtest.Namespace(t, "bare")
			sh(t, ns, "ip link add eth0 up type veth peer name far && ip link set far up && ip address add 192.0.2.1/24 dev eth0 && sysctl -w net.ipv4.ip_forward=1")
			h := host{tun: "/dev/net/tun", clock: func(*unix.Timex) (int, error) { return 0, nil }, selfTest: kernelpath.SelfTest}
			if tt.fault != nil {
				tt.fault(t, ns, &h)
			}
			var all []Finding
			testkit.Must(t, ns.Do(func() error {
				all = newPreflight(tt.plan, h, tt.probes).all(t.Context())
				return nil
			}))
			found := ofCheck(all, tt.check)
			if !slices.ContainsFunc(found, func(f Finding) bool { return f.Level == tt.level && strings.Contains(f.Text, tt.text) }) {
				t.Errorf("got %+v, want %s with %q", all, tt.level, tt.text)
			}
		})
	}
}
