package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/trace"
)

// inhabit starts a process in a pod, through which its network namespace is found.
func inhabit(t testing.TB, p *netlab.Pod) {
	t.Helper()
	cmd := p.NS.Command(t.Context(), "sleep", "infinity")
	testkit.Must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Wait() }) // the end of the test's context has killed it
}

// trace runs twill trace beside d.
func (d *daemon) trace(args ...string) (r trace.Report, code int) {
	d.t.Helper()
	cmd := d.ns.Command(d.t.Context(), bin("twill"), append([]string{"trace", "--json", "--socket=" + d.socket}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if jsonErr := json.Unmarshal(out.Bytes(), &r); jsonErr != nil {
		d.t.Fatalf("twill trace %q: %v, %v\n%s%s", args, err, jsonErr, &out, &errs)
	}
	return r, cmd.ProcessState.ExitCode()
}

// traceGetsThrough waits until a trace succeeds and has seen all probes at each step. The
// daemons may still have to follow a change, and a probe may be lost.
func (d *daemon) traceGetsThrough(args ...string) (r trace.Report) {
	d.t.Helper()
	testkit.Eventually(d.t, fmt.Sprintf("a trace of %q gets through", args), func() bool {
		var code int
		r, code = d.trace(args...)
		return code == 0 && r.OK && len(unseen(r)) == 0
	}, func() string { return fmt.Sprintf("not seen at %q\n%s", unseen(r), pageOf(r)) })
	return r
}

// traceBlames waits until a trace fails for a cause, after a packet was seen last at a
// place.
func (d *daemon) traceBlames(cause, lastSeen string, args ...string) (r trace.Report) {
	d.t.Helper()
	testkit.Eventually(d.t, fmt.Sprintf("a trace of %q names %q", args, cause), func() bool {
		var code int
		r, code = d.trace(append(args, "-W=1s")...)
		return code == 1 && !r.OK && strings.Contains(r.Cause, cause) && strings.Contains(r.LastSeen, lastSeen)
	}, func() string { return pageOf(r) })
	return r
}

func pageOf(r trace.Report) string {
	var b strings.Builder
	_ = r.WritePage(&b)
	return b.String()
}

// unseen returns the steps at which not all probes were seen. Answers to UDP are ICMP errors,
// which the kernel limits.
func unseen(r trace.Report) (all []string) {
	steps := slices.Concat(r.Sender.Steps, r.Sender.Back)
	if r.Receiver != nil {
		steps = append(steps, r.Receiver.Steps...)
	}
	for _, s := range steps {
		if s.Proof != nil && s.Seen < r.Sent.Small && !(s.Proof.Answer && r.Packet.Proto == trace.UDP) {
			all = append(all, s.Name)
		}
	}
	return all
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c      IPv4 and IPv6
//
//	auto   │   vxlan  │  udp
//	       │          │
//	twill trace, which runs twill on the other node
func TestTraceSeesAPacketAtEachStepThereAndBack(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts, stack: dualStack})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	inhabit(t, c.pod(0))
	a, via := c.running[0].(*daemon), "--via="+c.via()
	for _, tt := range []struct {
		host    int
		backend string
		ipv6    int
		proto   []string
	}{
		{1, "vxlan", 0, nil}, {1, "vxlan", 1, nil}, {2, "udp", 1, nil},
		{2, "udp", 0, []string{"icmp"}}, {2, "udp", 0, []string{"tcp", "80"}}, {2, "udp", 0, []string{"udp", "9"}},
	} {
		r := a.traceGetsThrough(append([]string{via, c.addrs(0)[tt.ipv6].String(), c.addrs(tt.host)[tt.ipv6].String()}, tt.proto...)...)
		if r.Backend != tt.backend || !r.Sent.InPod {
			t.Errorf("%+v:\n%s", tt, pageOf(r))
		}
	}
	n := c.nodes[2]
	if r := a.traceGetsThrough(via, c.nodes[0].Addr.String(), n.Addr.String()); r.Packet.To != n.Subnet.Addr() || r.Sent.InPod {
		t.Errorf("from node to node:\n%s", pageOf(r))
	}
	// Without --via this node's half is shown, and whether an answer came.
	if r := a.traceGetsThrough(c.addrs(0)[0].String(), c.addrs(1)[0].String()); r.Receiver != nil || r.Missing == "" {
		t.Errorf("without --via:\n%s", pageOf(r))
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	plain routes
func TestTraceSeesPacketsOfPlainRoutes(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "host-gw"}`})
	c.runTwill()
	inhabit(t, c.pod(0))
	a := c.running[0].(*daemon)
	if r := a.traceGetsThrough("--via="+c.via(), c.pod(0).Addr.String(), c.pod(1).Addr.String()); r.Backend != "host-gw" {
		t.Errorf("by %s:\n%s", r.Backend, pageOf(r))
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	udp           udp, broken in one way after the other
func TestTraceNamesTheCauseAndTheRemedyHelps(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.runTwill("--iptables-forward-rules=true")
	inhabit(t, c.pod(0))
	a, b := c.running[0].(*daemon), c.running[1].(*daemon)
	packet := []string{"--via=" + c.via(), c.pod(0).Addr.String(), c.pod(1).Addr.String(), "udp", "53"}
	peer := func(i int) string { return c.pod(i).Addr.String() }
	for _, tt := range []struct {
		on             *daemon
		breaks         string
		cause, at, far string // far: the remedy belongs to b
	}{
		{b, "iptables -I FORWARD -p udp --dport 53 -j DROP", "FORWARD drops it: -A FORWARD -p udp -m udp --dport 53", "arriving on flannel0", "b"},
		{b, "iptables -I FORWARD -m length --length 0:65535 -j DROP", "-m length", "arriving on flannel0", "b"},
		{b, "iptables -A INPUT -p udp --dport 8285 -j DROP", "UDP port 8285: INPUT drops it", "arriving on eth0", "b"},
		{a, "ip route add " + peer(1) + " via " + c.nodes[1].Addr.String() + " dev eth0", "bypasses flannel0", "", ""},
		{b, "ip route add " + peer(0) + " via " + c.nodes[0].Addr.String() + " dev eth0", "the reverse path filter of flannel0", "arriving on flannel0", "b"},
		{b, "ip route add " + c.nodes[1].Subnet.Addr().String() + "/26 dev eth0", "packets to this node's own pods", "arriving on flannel0", "b"},
		{b, "ip link set dev cni0 down", "cni0, the bridge of the pods, is down", "", "b"},
	} {
		tt.on.sh(tt.breaks)
		r := a.traceBlames(tt.cause, tt.at, packet...)
		on := a
		if tt.far != "" {
			on = b
		}
		if want := map[*daemon]string{a: c.nodes[0].Addr.String(), b: c.nodes[1].Addr.String()}[on]; r.On.String() != want {
			t.Errorf("%s: the remedy belongs to %s, want %s:\n%s", tt.breaks, r.On, want, pageOf(r))
		}
		on.sh(r.Remedy)
	}
	a.traceGetsThrough(packet...) // the remedies have helped

	a.traceBlames("no node has a lease for 10.5.9.9", "arriving on cni0", peer(0), "10.5.9.9")

	b.sh("nft 'add table netdev far; add chain netdev far in { type filter hook ingress device eth0 priority 0; }; add rule netdev far in udp dport 8285 drop'")
	a.traceBlames("answers, but not through the tunnel", "leaving on eth0", peer(0), peer(1)) // which is all that a can find without --via
	b.sh("nft delete table netdev far")

	b.sh("ip link set dev " + netlab.UnderlayLink + " mtu 1400")
	testkit.Eventually(t, "the narrow path is found", func() bool {
		r, _ := a.trace(packet...)
		return slices.ContainsFunc(r.Sender.Steps, func(s trace.Step) bool {
			return s.Level == doctor.Bad && strings.Contains(s.Text, "takes packets of at most 14") && s.Remedy != ""
		})
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	leases of both   that of b alone
func TestTraceFindsTheNodeThatLacksALease(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{idle: true})
	file := filepath.Join(scratchDir(t), "leases.json")
	writeLeases(t, file, l.leases()[1:])
	l.daemons[1] = newDaemon(t, l.Hosts[1].NS, file)
	l.start()
	inhabit(t, l.pod(0))
	via := viaTo(t, map[netip.Addr]*daemon{l.Hosts[0].Addr: l.daemons[0], l.Hosts[1].Addr: l.daemons[1]})
	forFamilies(t, l.pod(1), func(t *testing.T, to netip.Addr) {
		from := l.pod(0).Addr
		if to.Is6() {
			from = l.pod(0).Addr6
		}
		r := l.daemons[0].traceBlames("this node knows no lease for "+from.String(), "arriving on eth0", "--via="+via, from.String(), to.String())
		if r.On != l.Hosts[1].Addr || r.Remedy != "twill leases" {
			t.Errorf("the remedy is %q on %s:\n%s", r.Remedy, r.On, pageOf(r))
		}
	})
}
