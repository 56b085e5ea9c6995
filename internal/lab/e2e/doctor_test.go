package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// doctor runs twill doctor beside d, which it asks for its files and its store.
func (d *daemon) doctor() (found []doctor.Finding, code int) {
	d.t.Helper()
	cmd := d.ns.Command(d.t.Context(), bin("twill"), "doctor", "--json", "--socket="+d.socket)
	out, err := cmd.Output()
	var report struct{ Findings []doctor.Finding }
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil {
		d.t.Fatalf("twill doctor: %v, %v\n%s", err, jsonErr, out)
	}
	return report.Findings, cmd.ProcessState.ExitCode()
}

// isWell waits until the doctor finds nothing bad; the daemon may still have to
// follow a change.
func (d *daemon) isWell() {
	d.t.Helper()
	var found []doctor.Finding
	testkit.Eventually(d.t, "the doctor finds nothing bad", func() bool {
		var code int
		found, code = d.doctor()
		return doctor.Worst(found) != doctor.Bad && code == 0
	})
}

// isSick returns a bad finding of the doctor's that has want in it.
func (d *daemon) isSick(want string) doctor.Finding {
	d.t.Helper()
	return d.has(doctor.Bad, want)
}

// has returns a finding of the doctor's that has want in it. A bad one makes the exit code 1.
func (d *daemon) has(level doctor.Level, want string) doctor.Finding {
	d.t.Helper()
	found, code := d.doctor()
	i := slices.IndexFunc(found, func(f doctor.Finding) bool { return f.Level == level && strings.Contains(f.Text, want) })
	if i < 0 || code != 1 && level == doctor.Bad {
		d.t.Fatalf("exit code %d, %+v; want one that is %s with %q", code, found, level, want)
	}
	return found[i]
}

// sh runs a command of the shell on d's host.
func (d *daemon) sh(command string) {
	d.t.Helper()
	if out, err := d.ns.Command(d.t.Context(), "sh", "-c", command).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// ailment is a way to keep the pods of a node from others while the nodes reach each other.
type ailment struct {
	check  string // doctor's, that finds it
	breaks string // a command of the shell on the node
	found  string // is in the finding
	level  doctor.Level
}

// ailments has one for each check that a command can provoke and that twilld does not undo.
// route is one to a part of the node's own subnet.
func ailments(route netip.Prefix) []ailment {
	return []ailment{
		{"forwarding", "sysctl -qw net.ipv4.ip_forward=0", "ip_forward is 0", doctor.Bad},
		{"forward-policy", "iptables -I FORWARD -j REJECT", "dropped in FORWARD by -A FORWARD -j REJECT", doctor.Bad},
		{"masquerade", "iptables -t nat -I POSTROUTING -j MASQUERADE", "-A POSTROUTING -j MASQUERADE", doctor.Warn},
		{"own-subnet", "ip route add " + route.String() + " dev " + netlab.UnderlayLink, route.String(), doctor.Bad},
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	doctor ──── pings ───► UDP 8285 closed, MTU 1400, no daemon
func TestDoctorFindsWhatKeepsNodesApartAndItsRemediesHelp(t *testing.T) {
	t.Parallel()
	if err := build("twill", "./cmd/twill"); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, labOptions{flags: []string{"--iptables-forward-rules=true"}})
	a, b := l.daemons[0], l.daemons[1]
	a.isWell()

	b.sh("iptables -A INPUT -p udp --dport 8285 -j DROP")
	a.isSick(fmt.Sprintf("%s answers, but not through the tunnel", l.Hosts[1].Addr))
	b.sh(b.isSick("drops datagrams from " + l.Hosts[0].Addr.String() + " to UDP port 8285").Remedy)
	a.isWell()
	b.isWell()

	b.sh("ip link set dev " + netlab.UnderlayLink + " mtu 1400")
	f := a.isSick(fmt.Sprintf("the path to %s takes packets of at most 14", l.Hosts[1].Addr))
	a.sh(f.Remedy)
	a.isWell()

	for _, x := range ailments(netip.PrefixFrom(l.Hosts[0].Subnet.Addr(), 26)) {
		a.sh(x.breaks)
		f := a.has(x.level, x.found)
		if f.Check != x.check {
			t.Errorf("%s: found by %s, want %s", x.breaks, f.Check, x.check)
		}
		a.sh(f.Remedy)
	}
	a.isWell()
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	auto   │   vxlan  │  udp
//	       └── etcd ──┘
func TestDoctorKnowsByWhichWayEachPeerIsReached(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	a := c.running[0].(*daemon)
	for i, port := range map[int]int{1: 8472, 2: 8285} {
		d := c.running[i].(*daemon)
		a.isWell()
		d.isWell()
		d.sh(fmt.Sprintf("iptables -A INPUT -p udp --dport %d -j DROP", port))
		a.isSick(fmt.Sprintf("%s answers, but not through the tunnel (%s): UDP port %d", c.nodes[i].Addr, c.nodes[i].Subnet.Addr(), port))
		d.sh(d.isSick(fmt.Sprintf("to UDP port %d", port)).Remedy)
	}
	a.isWell()
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	vxlan, a device for each family
func TestDoctorAsksBothFamiliesThroughTheirTunnels(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack})
	c.run(twill("vxlan"), twill("vxlan"))
	c.waitTalk()
	a, b := c.running[0].(*daemon), c.running[1].(*daemon)
	a.isWell()
	b.sh("ip6tables -A INPUT -p udp --dport 8472 -j DROP")
	a.isSick(fmt.Sprintf("%s answers, but not through the tunnel (%s): UDP port 8472", c.nodes[1].Addr6, c.nodes[1].Subnet6.Addr()))
	b.sh(b.isSick("to UDP port 8472").Remedy)
	a.isWell()
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	plain routes
func TestDoctorMissesNoTunnelWhereThereAreRoutes(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "host-gw"}`})
	c.run(twill("host-gw"), twill("host-gw"))
	c.waitTalk()
	a := c.running[0].(*daemon)
	a.isWell()
	found, _ := a.doctor()
	for check, want := range map[string]string{
		"tun": "not needed: host-gw carries the packets", "udp-port": "plain routes need no port",
		"peers": "1 of 1 answer unfragmentable packets of 1500 bytes",
	} {
		if !slices.ContainsFunc(found, func(f doctor.Finding) bool { return f.Check == check && f.Text == want }) {
			t.Errorf("%s does not say %q: %+v", check, want, found)
		}
	}

	b := c.running[1].(*daemon)
	b.sh("ip link set dev " + netlab.UnderlayLink + " mtu 1400")
	a.isSick(fmt.Sprintf("the path to %s takes packets of at most 14", c.nodes[1].Addr))
}
