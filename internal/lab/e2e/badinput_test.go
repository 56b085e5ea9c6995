package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// site is a host on which twilld is started wrongly: host a of a topology that
// could carry a network.
type site struct {
	*netlab.Host
	t         *testing.T
	dir       string // of all files that twilld is given
	leaseFile string // sound unless a test changes it
}

func newSite(t *testing.T) *site {
	t.Helper()
	topo := netlabtest.New(t, netlab.Options{})
	s := &site{Host: topo.Hosts[0], t: t, dir: scratchDir(t)}
	s.leaseFile = filepath.Join(s.dir, "leases.json")
	s.write(soundLeases)
	return s
}

// soundLeases is a lease file for hosts a and b.
const soundLeases = `{
  "Network": "10.5.0.0/16",
  "Backend": {"Type": "udp"},
  "Leases": [
    {"Subnet": "10.5.1.0/24", "PublicIP": "172.31.9.11"},
    {"Subnet": "10.5.2.0/24", "PublicIP": "172.31.9.12"}
  ]
}
`

// dualStackLeases is soundLeases for a network of both families.
var dualStackLeases = strings.NewReplacer(
	`"Backend"`, `"EnableIPv6": true, "IPv6Network": "fd00:10:5::/48", "Backend"`,
	`"10.5.1.0/24"`, `"10.5.1.0/24", "IPv6Subnet": "fd00:10:5:1::/64"`,
	`"10.5.2.0/24"`, `"10.5.2.0/24", "IPv6Subnet": "fd00:10:5:2::/64"`,
).Replace(soundLeases)

// write replaces the text of the lease file.
func (s *site) write(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.leaseFile, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// flags are those of a twilld that would run, and more, which take precedence.
func (s *site) flags(more ...string) []string {
	return s.flagsAnyInterface(append([]string{"--iface=" + netlab.UnderlayLink}, more...)...)
}

// flagsAnyInterface are flags that do not name an interface, and more.
func (s *site) flagsAnyInterface(more ...string) []string {
	return append([]string{
		"--lease-file=" + s.leaseFile,
		"--subnet-file=" + filepath.Join(s.dir, "subnet.env"),
		"--socket=" + filepath.Join(s.dir, "twilld.sock"),
		noRules,
	}, more...)
}

// refusal is how twilld must decline to run.
type refusal struct {
	code int
	says []string // what its one line of explanation contains
}

// because is the refusal of what is wrong on the host, not on the command line.
func because(says ...string) refusal { return refusal{1, says} }

// refuses runs a twilld, which must end by itself as want says and leave the
// host and the directory as they were.
func (s *site) refuses(t *testing.T, want refusal, flags ...string) {
	t.Helper()
	s.runs(t, want, append([]string{bin("twilld")}, flags...))
}

// refusesWithout is refuses on a host that lacks something: lacks are flags of
// the command in directory without.
func (s *site) refusesWithout(t *testing.T, lacks []string, want refusal, flags ...string) {
	t.Helper()
	s.runs(t, want, slices.Concat([]string{without(t)}, lacks, []string{bin("twilld")}, flags))
}

func (s *site) runs(t *testing.T, want refusal, command []string) {
	t.Helper()
	before := s.state(t)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	out, err := s.NS.Command(ctx, command[0], command[1:]...).CombinedOutput()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", strings.Join(command, " "), errors.Join(ctx.Err(), err), out)
	}
	code := 0
	if exit != nil {
		code = exit.ExitCode()
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	why := lines[len(lines)-1]
	if code != want.code || !strings.HasPrefix(why, "twilld: ") {
		t.Errorf("exit code %d, want %d and a line that says why:\n%s", code, want.code, out)
	}
	for _, part := range want.says {
		if !strings.Contains(why, part) {
			t.Errorf("the line\n\t%s\ndoes not say %q", why, part)
		}
	}
	for _, line := range lines[:len(lines)-1] {
		if !strings.HasPrefix(line, "time=") {
			t.Errorf("more than one line besides the log:\n%s", out)
			break
		}
	}
	if after := s.state(t); after != before {
		t.Errorf("twilld changed the host from\n%s\nto\n%s", before, after)
	}
}

// state is what twilld must not leave changed: links, addresses and routes of
// the host, and files.
func (s *site) state(t testing.TB) string {
	t.Helper()
	files, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	state := netState(t, s.NS)
	for _, f := range files {
		state += fmt.Sprintf("file %s %s\n", f.Type(), f.Name())
	}
	return state
}

// netState lists the links, addresses and routes of a namespace.
func netState(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	nl := ns.Netlink()
	links, err := nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[int]string)
	var b strings.Builder
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		fmt.Fprintf(&b, "link %s %s mtu %d %s\n", a.Name, l.Type(), a.MTU, a.Flags)
	}
	addrs, err := nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "addr %s dev %s\n", a.IPNet, names[a.LinkIndex])
	}
	routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		fmt.Fprintf(&b, "route %s type %d via %s dev %s\n", r.Dst, r.Type, r.Gw, names[r.LinkIndex])
	}
	return b.String()
}

// buildOnce holds the binaries that only some tests need.
var buildOnce sync.Map

// built returns the path of a binary that it builds on its first call.
func built(t testing.TB, name, pkg string) string {
	t.Helper()
	once, _ := buildOnce.LoadOrStore(name, sync.OnceValue(func() error { return build(name, pkg) }))
	if err := once.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return bin(name)
}

// without returns the path of the command that removes something from the
// host before it runs another.
func without(t testing.TB) string { return built(t, "without", "./internal/lab/e2e/without") }

func TestWrongCommandLineIsAUsageError(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, c := range []struct {
		name, flag string
		says       []string
	}{
		{"unknown flag", "--frobnicate", []string{"unknown flag --frobnicate", "--help"}},
		{"misspelt flag", "--lease-fiel=x", []string{"unknown flag --lease-fiel; did you mean --lease-file?"}},
		{"flag behind an argument", "true --iface=eth0", []string{`argument "true"`, "--iface=eth0, would be ignored"}},
		{"no value", "--healthz-port", []string{"needs an argument: -healthz-port"}},
		{"no number", "--thread-pairs=many", []string{`"many" for flag -thread-pairs`, "want a whole number"}},
		{"number too great", "--thread-pairs=33", []string{"--thread-pairs: 33 is not from 1 to 32"}},
		{"no port", "--healthz-port=70000", []string{"--healthz-port: 70000 is not a port", "1 to 65535, or 0 for none"}},
		{"no address", "--public-ip=here", []string{`"here" for flag -public-ip`, "want an IP address"}},
		{"other family", "--public-ip=2001:db8::1", []string{"--public-ip: 2001:db8::1 is not an IPv4 address", "--public-ipv6"}},
		{"no switch", "--tun-offload=maybe", []string{`"maybe"`, "-tun-offload", "auto, on, off"}},
		{"no mode", "--source-check=lax", []string{`"lax"`, "-source-check", "strict, inner, off"}},
		{"no level", "--log-level=loud", []string{`"loud" for flag -log-level`, "want debug, info, warn or error"}},
		{"no regular expression", "--iface-regex=eth[", []string{"--iface-regex", "missing closing ]"}},
		{"name too long", "--tun-name=flannel-for-pods", []string{"--tun-name", `"flannel-for-pods"`, "1 to 15 bytes"}},
		{"name to be completed", "--tun-name=flannel%d", []string{"--tun-name", `"flannel%d"`, "percent"}},
		{"empty list", "--etcd-endpoints=http://192.0.2.1:2379,,", []string{"-etcd-endpoints", "want a comma-separated list without empty items"}},
		{"half a user", "--etcd-username=twill", []string{"set both --etcd-username and --etcd-password, or neither"}},
		{"flannel's Kubernetes", "--kube-subnet-mgr", []string{"--kube-subnet-mgr", "--lease-file", "omit one"}},
		{"no period", "--iptables-resync=0", []string{"--iptables-resync: 0", "1 to 86400 seconds"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.refuses(t, refusal{2, c.says}, s.flags(strings.Fields(c.flag)...)...)
		})
	}
}
