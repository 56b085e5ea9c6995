package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/connectivity"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// via returns a command for --via: it runs twill beside the daemon of the node with an
// address.
func (c *cluster) via() string {
	c.t.Helper()
	daemons := make(map[netip.Addr]*daemon)
	for i, n := range c.running {
		daemons[c.nodes[i].Addr] = n.(*daemon)
	}
	return viaTo(c.t, daemons)
}

// viaTo is via for the daemons of nodes with these addresses.
func viaTo(t testing.TB, daemons map[netip.Addr]*daemon) string {
	t.Helper()
	script := "#!/bin/sh\ncase $1 in\n"
	for a, d := range daemons {
		script += fmt.Sprintf("%s) net=/proc/%d/fd/%d socket=%s;;\n", a, os.Getpid(), d.ns.FD(), d.socket)
	}
	script += "*) echo no route to $1 >&2; exit 255;;\nesac\nshift\n" +
		"exec nsenter --net=$net " + bin("twill") + ` "$@" --socket=$socket` + "\n"
	path := filepath.Join(scratchDir(t), "via")
	testkit.Must(t, os.WriteFile(path, []byte(script), 0o755))
	return path + " {node}"
}

// connectivity runs twill connectivity beside d.
func (d *daemon) connectivity(flags ...string) (r connectivity.Report, code int) {
	d.t.Helper()
	cmd := d.ns.Command(d.t.Context(), bin("twill"), append([]string{"connectivity", "--json", "--socket=" + d.socket}, flags...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if jsonErr := json.Unmarshal(out.Bytes(), &r); jsonErr != nil {
		d.t.Fatalf("twill connectivity %q: %v, %v\n%s%s", flags, err, jsonErr, &out, &errs)
	}
	return r, cmd.ProcessState.ExitCode()
}

// failed lists the tests that failed, as "FROM TO TEST" with the letters of the hosts.
func (c *cluster) failed(r connectivity.Report) (all []string) {
	letter := func(a string) string {
		for _, n := range c.nodes {
			if n.Addr.String() == a {
				return n.Letter
			}
		}
		return a
	}
	for _, one := range r.Results {
		for _, o := range one.Tests {
			if o.Failed() {
				all = append(all, fmt.Sprintf("%s %s %s", letter(one.From.String()), letter(one.To.String()), o.Test))
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// foundOn lists the names of doctor's checks that are not good on a node, except that of
// the clock, which all share.
func (c *cluster) foundOn(r connectivity.Report, i int) (all []string) {
	for _, n := range r.Nodes {
		for _, f := range n.Findings {
			if n.Node == c.nodes[i].Addr && f.Check != "clock" {
				all = append(all, f.Check)
			}
		}
	}
	return all
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c      IPv4 and IPv6
//
//	auto   │   vxlan  │  udp
//	       │          │
//	twill connectivity, which runs twill on all three
func TestConnectivityTestsEveryWayInBothFamilies(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts, stack: dualStack})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	a, via := c.running[0].(*daemon), "--via="+c.via()
	var r connectivity.Report
	testkit.Eventually(t, "nothing fails", func() bool {
		var code int
		r, code = a.connectivity(via, "-W=10s")
		return code == 0
	})
	passed := make(map[string]int)
	for _, one := range r.Results {
		for _, o := range one.Tests {
			if o.OK {
				passed[one.Subnet.Addr().String()[:4]+" "+o.Test]++
			}
		}
	}
	for _, test := range []string{"ping", "mtu", "tcp", "udp"} {
		if v4, v6 := passed["10.5 "+test], passed["fd00 "+test]; v4 != 6 || v6 != 6 {
			t.Errorf("%s: %d IPv4 paths and %d IPv6 paths passed, want 6 of each", test, v4, v6)
		}
	}

	only, _ := a.connectivity(via, "--nodes="+c.nodes[0].Addr.String()+","+c.nodes[2].Addr.String()+"/32")
	if len(only.Nodes) != 2 || len(only.Results) != 4 {
		t.Errorf("--nodes with two: %d nodes, %d results; want 2 and 4", len(only.Nodes), len(only.Results))
	}
	one, code := a.connectivity()
	if len(one.Results) != 4 || code != 0 {
		t.Errorf("without --via: exit code %d, %d results; want 0 and the 4 from here", code, len(one.Results))
	}
}

// concerns reports whether all of the failed tests, and at least one of each in want, are
// from or to the host with a letter.
func concerns(failed []string, letter string, want ...string) bool {
	for _, f := range failed {
		if !strings.Contains(" "+f+" ", " "+letter+" ") {
			return false
		}
	}
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(failed, w) })
}

// diag runs twill diag --all beside d, and returns the files of a node and what is listed of
// it.
func (c *cluster) diag(d *daemon, via string, i int) (files map[string]string, listed string) {
	c.t.Helper()
	all, list := d.diag("--all", via)
	files = make(map[string]string)
	for name, text := range all {
		if of, ok := strings.CutPrefix(name, c.nodes[i].Addr.String()+"/"); ok {
			files[of] = text
		}
	}
	// Each node's lines begin with one that has its address first; findings follow.
	of := ""
	for _, line := range strings.Split(list, "\n") {
		if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "bad ") {
			of, _, _ = strings.Cut(line, " ")
		}
		if of == c.nodes[i].Addr.String() {
			listed += line + "\n"
		}
	}
	return files, listed
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	udp    │   udp    │  udp, broken in one way after the other
//	       │          │
//	twill connectivity and diag, which run twill on all three
func TestConnectivityNamesTheNodeThatIsBroken(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`, Options: threeHosts})
	c.runTwill("--iptables-forward-rules=true")
	a, broken := c.running[0].(*daemon), c.running[2].(*daemon)
	via, junit := "--via="+c.via(), filepath.Join(scratchDir(t), "junit.xml")

	// Only doctor can find what keeps pods, but not nodes, from communicating.
	all := ailments(netip.PrefixFrom(c.nodes[2].Subnet.Addr(), 26)) // of its own pods
	for _, x := range all {
		broken.sh(x.breaks)
	}
	testkit.Eventually(t, "doctor's findings on c are shown, and none on the others", func() bool {
		r, code := a.connectivity(via, "-W=5s")
		on := c.foundOn(r, 2)
		missing := slices.ContainsFunc(all, func(x ailment) bool { return !slices.Contains(on, x.check) })
		return code == 1 && !missing && len(c.foundOn(r, 0))+len(c.foundOn(r, 1)) == 0
	})
	files, listed := c.diag(a, via, 2)
	listed = testkit.Unwrapped(listed)
	for _, x := range all {
		if x.level == doctor.Bad && (!strings.Contains(listed, x.check) || !strings.Contains(listed, x.found)) || !strings.Contains(testkit.Unwrapped(files["doctor.txt"]), x.found) {
			t.Errorf("twill diag --all does not have %q of c:\n%s\n%s", x.found, listed, files["doctor.txt"])
		}
		broken.sh(broken.has(x.level, x.found).Remedy)
	}

	broken.sh("iptables -A INPUT -p udp --dport 8285 -j DROP")
	testkit.Eventually(t, "all paths to and from c are down, and doctor on c names the cause", func() bool {
		r, code := a.connectivity(via, "-W=5s", "--junit="+junit)
		return code == 1 && slices.Contains(c.foundOn(r, 2), "udp-port") &&
			concerns(c.failed(r), "c", "a c ping", "b c ping", "c a ping", "a c tcp", "a c udp")
	})
	if _, listed := c.diag(a, via, 2); !strings.Contains(testkit.Unwrapped(listed), "to UDP port 8285") {
		t.Errorf("twill diag --all does not list that datagrams are dropped:\n%s", listed)
	}
	broken.sh("iptables -D INPUT -p udp --dport 8285 -j DROP")
	if raw, err := os.ReadFile(junit); err != nil || !strings.Contains(string(raw), `<testcase classname="doctor" name="udp-port"`) {
		t.Errorf("the JUnit file: %v\n%s", err, raw)
	}

	broken.stop(syscall.SIGTERM)
	testkit.Eventually(t, "there is no daemon on c", func() bool {
		r, code := a.connectivity(via, "-W=5s")
		return code == 1 && slices.Contains(c.foundOn(r, 2), "daemon") && concerns(c.failed(r), "c", "a c ping", "b c ping")
	})
	if _, listed := c.diag(a, via, 2); !strings.Contains(listed, "bad   daemon") {
		t.Errorf("twill diag --all does not list that there is no daemon:\n%s", listed)
	}
	r, code := a.connectivity("--via=false {node}", "--nodes="+c.nodes[0].Addr.String()+","+c.nodes[1].Addr.String(), "-W=5s")
	if code != 1 || r.Nodes[1].Problem != "exit status 1" || len(c.failed(r)) > 0 {
		t.Errorf("a --via that fails: exit code %d, %q, failed %v", code, r.Nodes[1].Problem, c.failed(r))
	}
}

// pod-a ── host a ── 1400 ── host b ── pod-b
//
//	vxlan with an MTU for 1500
func TestConnectivityFindsANarrowPath(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
	c.runTwill()
	a, via := c.running[0].(*daemon), "--via="+c.via()
	// Only datagrams that carry packets of pods are lost, without an ICMP error.
	for _, n := range c.nodes {
		testkit.Must(t, n.NS.Command(t.Context(), "nft", "add table netdev narrow; add chain netdev narrow in { type filter hook ingress device eth0 priority 0; }; add rule netdev narrow in udp dport 8472 meta length > 1400 drop").Run())
	}
	testkit.Eventually(t, "full-size packets fail, both ways, and smaller ones do not", func() bool {
		r, code := a.connectivity(via, "-W=2s")
		failed := c.failed(r)
		if code != 1 || !slices.Contains(failed, "a b mtu") || !slices.Contains(failed, "b a mtu") || slices.Contains(failed, "a b ping") {
			return false
		}
		for _, o := range r.Results[0].Tests {
			if o.Test == "mtu" {
				return strings.Contains(o.Detail, "up to 1350 bytes arrive, but not those of 1450")
			}
		}
		return false
	})
}
