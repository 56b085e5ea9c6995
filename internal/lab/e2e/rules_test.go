package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// withRules are the flags of a daemon that makes all of its rules.
var withRules = []string{"--iptables-forward-rules=true", "--ip-masq", "--ip-blackhole-route", "--iptables-resync=1"}

// firewall returns the rules of a namespace, without counters.
func firewall(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	var all string
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		out, err := ns.Command(context.Background(), save).Output()
		if err != nil {
			t.Fatalf("%s: %v", save, err)
		}
		all += string(out)
	}
	return all
}

// blackholes lists the blackhole routes of a namespace.
func blackholes(t testing.TB, ns *netlab.Namespace) (to []string) {
	t.Helper()
	routes, err := ns.Netlink().RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Type: unix.RTN_BLACKHOLE}, netlink.RT_FILTER_TYPE)
	testkit.Must(t, err)
	for _, r := range routes {
		to = append(to, r.Dst.String())
	}
	return to
}

// cleanUp runs twilld --cleanup in place of the daemon, which has exited.
func (d *daemon) cleanUp() (out string, code int) {
	d.t.Helper()
	text, err := d.ns.Command(context.Background(), bin("twilld"), append(d.args, "--cleanup")...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return string(text), code
}

// pod-a ── host a ──────────── host b ── pod-b
func TestRulesStandWithSubnetEnvOutliveTheDaemonAndAreCleanedUp(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true, flags: withRules})
	d := l.daemons[0]
	foreign := []string{"iptables", "-A", "FORWARD", "-s", "192.0.2.0/24", "-m", "comment", "--comment", "of another program", "-j", "ACCEPT"}
	testkit.Must(t, d.ns.Command(t.Context(), foreign[0], foreign[1:]...).Run())
	routes := netState(t, d.ns)
	l.start()
	testkit.Must(t, l.SetPodMTU(1500)) // as it was

	if env := d.env(); !strings.Contains(env, "FLANNEL_IPMASQ=true\n") {
		t.Errorf("subnet.env:\n%s", env)
	}
	rules := firewall(t, d.ns)
	for _, want := range []string{
		"-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n",
		"-A FLANNEL-POSTRTG -s 10.5.1.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN\n",
		"-A FLANNEL-POSTRTG -s fd00:10:5:1::/64 -d fd00:10:5::/48 -m comment --comment \"flanneld masq\" -j RETURN\n",
	} {
		if !strings.Contains(rules, want) {
			t.Errorf("there is no rule %s in\n%s", want, rules)
		}
	}
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		if err := ping(l.pod(0), addr, 100); err != nil {
			t.Error(err)
		}
	})

	if out, code := d.cleanUp(); code != 1 || !strings.Contains(out, "another twilld is running") {
		t.Errorf("clean up beside a daemon: exit code %d, %s", code, out)
	}
	if out, code := d.cleanUpElsewhere(); code != 1 || !strings.Contains(out, "interface flannel0 is open: stop the flanneld or twilld") {
		t.Errorf("clean up beside a daemon that is not found by its socket: exit code %d, %s", code, out)
	}
	d.stop(syscall.SIGTERM)
	if after := firewall(t, d.ns); !sameRules(after, rules) {
		t.Errorf("the rules were\n%s\nand are\n%s", rules, after)
	}
	if out, code := d.cleanUp(); code != 0 {
		t.Errorf("clean up: exit code %d, %s", code, out)
	}
	if after := firewall(t, d.ns); strings.Contains(after, "FLANNEL") || strings.Contains(after, "flanneld forward") {
		t.Errorf("left after the clean-up:\n%s", after)
	} else if !strings.Contains(after, "of another program") {
		t.Errorf("the clean-up removed a foreign rule:\n%s", after)
	}
	if after := netState(t, d.ns); after != routes {
		t.Errorf("the host was\n%s\nand is\n%s", routes, after)
	}
	if got := d.files(); got != "" {
		t.Errorf("files left: %s", got)
	}
	if out, code := d.cleanUp(); code != 0 {
		t.Errorf("where nothing is left: exit code %d, %s", code, out)
	}
}

// cleanUpElsewhere is cleanUp with another control socket.
func (d *daemon) cleanUpElsewhere() (out string, code int) {
	other := *d
	other.args = append(append([]string(nil), d.args...), "--socket="+d.socket+".other")
	return other.cleanUp()
}

// sameRules compares two outputs of iptables-save without their time stamps
// and counters.
func sameRules(a, b string) bool {
	var rules [2][]string
	for i, text := range []string{a, b} {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, "-A ") {
				rules[i] = append(rules[i], line)
			}
		}
	}
	return strings.Join(rules[0], "") == strings.Join(rules[1], "")
}

func TestRulesAndBlackholeRoutesComeBack(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: withRules})
	d := l.daemons[0]
	want := []string{"10.5.1.0/24", "fd00:10:5:1::/64"}
	if got := blackholes(t, d.ns); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("blackhole routes %s, want %s", got, want)
	}
	testkit.Must(t, d.ns.Command(t.Context(), "iptables", "-F", "FLANNEL-FWD").Run(),
		d.ns.Command(t.Context(), "ip", "route", "del", "blackhole", "10.5.1.0/24").Run())
	testkit.Eventually(t, "the rule is back", func() bool { return strings.Contains(firewall(t, d.ns), "-A FLANNEL-FWD -d 10.5.0.0/16 ") })
	testkit.Eventually(t, "the route is back", func() bool { return len(blackholes(t, d.ns)) == 2 })
	// The bridge's own route takes precedence.
	if err := ping(l.pod(1), l.pod(0).Addr, 100); err != nil {
		t.Error(err)
	}
}

// The previous daemon had other flags, or was stock flannel, whose rules outlive it.
func TestRulesThatAreNoLongerWantedGoAwayAtTheStart(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{Options: netlab.Options{Hosts: 2}, flags: withRules})
	d := l.daemons[0]
	testkit.Must(t, d.ns.Command(t.Context(), "iptables", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "ACCEPT").Run())
	if rules := d.status().Rules; rules == nil || !rules.Masquerade || !rules.Forward || rules.Problem != "" {
		t.Errorf("status: rules %+v", rules)
	}
	d.stop(syscall.SIGTERM)
	if got := firewall(t, d.ns); !strings.Contains(got, "FLANNEL-FWD") || !strings.Contains(got, "FLANNEL-POSTRTG") {
		t.Fatalf("the rules did not outlive the daemon:\n%s", got)
	}
	d.args = append(d.args, "--ip-masq=false", "--iptables-forward-rules=false")
	d.start()
	d.waitReady()
	if got := firewall(t, d.ns); strings.Contains(got, "FLANNEL") || !strings.Contains(got, "-s 192.0.2.0/24 -j ACCEPT") {
		t.Errorf("the rules are\n%s\nwant only the other program's rule", got)
	}
	if rules := d.status().Rules; rules == nil || rules.Masquerade || rules.Forward || rules.Problem != "" {
		t.Errorf("status: rules %+v", rules)
	}
}

// A host without iptables still carries packets, unless they would leave it
// with addresses that cannot be answered.
func TestHostWithoutIptables(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true, flags: []string{"--iptables-forward-rules=true", "--iptables-resync=1"}})
	for _, d := range l.daemons {
		d.wrap = []string{"/usr/bin/env", "PATH=/nonexistent"}
	}
	l.start()
	if err := ping(l.pod(0), l.pod(1).Addr, 100); err != nil {
		t.Error(err)
	}
	d := l.daemons[0]
	testkit.Eventually(t, "the log says what to do", func() bool {
		return strings.Contains(d.stderr.String(), "cannot apply firewall rules") && strings.Contains(d.stderr.String(), "install iptables")
	})

	d.stop(syscall.SIGTERM)
	d.args = append(d.args, "--ip-masq")
	testkit.Must(t, os.Remove(d.subnetFile))
	d.start()
	if code := d.wait(); code != 1 {
		t.Errorf("with --ip-masq: exit code %d, want 1", code)
	}
	if log := d.stderr.String(); !strings.Contains(log, "twilld: IPv4 rules: ") || !strings.Contains(log, "install iptables") {
		t.Errorf("with --ip-masq:\n%s", log)
	}
	if got := d.files(); got != "" {
		t.Errorf("subnet.env describes a network that does not exist: %s", got)
	}
}

func TestAllocTakesALeaseAndMakesNoDevice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.write(strings.Replace(soundLeases, `"udp"`, `"alloc"`, 1))
	before := netState(t, s.NS)
	d := startDaemon(t, s.NS, s.leaseFile)
	if want := "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n"; d.env() != want {
		t.Errorf("subnet.env:\n%swant\n%s", d.env(), want)
	}
	if after := netState(t, s.NS); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
	if doc := d.status(); doc.Dataplane != nil || doc.Backend != "alloc" {
		t.Errorf("status: %+v", doc)
	}
	if page := d.page(); !strings.Contains(page, "backend alloc") || strings.Contains(page, "device") {
		t.Errorf("twill status:\n%s", page)
	}
}
