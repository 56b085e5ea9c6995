package e2e

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/guest"
	"github.com/twillnet/twill/internal/netlab"
	"github.com/twillnet/twill/internal/status"
)

// guestPatience is patience with a guest, whose CPU is emulated.
const guestPatience = 3 * time.Minute

// guestNode is a node with a kernel of its own: Debian's 6.1, without VXLAN. Its
// pod is a namespace of this machine.
type guestNode struct {
	*guest.Guest
	t testing.TB
}

// bootNode boots a guest in the place of h, with twilld and twill in it and what
// files names besides.
func bootNode(t testing.TB, h *netlab.Host, files map[string]string) *guestNode {
	t.Helper()
	image, err := guest.Linux61()
	must(t, err)
	c := guest.Config{
		Image: image, Modules: []string{"tun"}, Host: h,
		Files: map[string]string{"/usr/sbin/twilld": bin("twilld"), "/usr/sbin/twill": built(t, "twill", "./cmd/twill")},
	}
	for name, from := range files {
		c.Files[name] = from
	}
	n := &guestNode{guest.Boot(t, c), t}
	// Before Boot's own cleanup, the guest still runs.
	t.Cleanup(func() {
		if t.Failed() {
			log, err := n.Run("cat /tmp/twilld.log; twill status")
			t.Logf("log and status of twilld in the guest (error: %v):\n%s", err, log)
		}
	})
	return n
}

// start starts twilld and waits until it is ready.
func (n *guestNode) start(flags ...string) {
	n.t.Helper()
	n.run("twilld --iface=" + netlab.UnderlayLink + " " + noRules + " " + strings.Join(flags, " ") + " >/tmp/twilld.log 2>&1 &")
	if !within(guestPatience, func() bool {
		n.run("pidof twilld") // not one that has ended
		raw, err := n.Run("cat /run/flannel/subnet.env && twill status --json")
		return err == nil && !strings.Contains(raw, `"waiting"`)
	}) {
		n.t.Fatalf("not within %s: twilld in the guest is ready", guestPatience)
	}
}

// run runs a command that must not fail.
func (n *guestNode) run(line string) string {
	n.t.Helper()
	out, err := n.Run(line)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// status asks the daemon; it must be running.
func (n *guestNode) status() *status.Document {
	n.t.Helper()
	doc := new(status.Document)
	raw := n.run("twill status --json")
	if err := json.Unmarshal([]byte(raw), doc); err != nil {
		n.t.Fatalf("status of twilld in the guest: %v\n%s", err, raw)
	}
	return doc
}

// offload returns what came of an offload.
func (n *guestNode) offload(name string) status.Offload {
	n.t.Helper()
	all := n.status().Dataplane.Offloads
	i := slices.IndexFunc(all, func(o status.Offload) bool { return o.Name == name })
	if i < 0 {
		n.t.Fatalf("status has no offload %s: %v", name, all)
	}
	return all[i]
}

// Linux 6.1 does not take UDP super-packets from TUN, nor hand them over.
//
//	pod-a ── host a, this kernel ────────── guest, Linux 6.1 ── pod-b
func TestNodeWithAnOlderKernelTalksToOneWithThis(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	n := bootNode(t, l.Hosts[1], map[string]string{"/etc/twill/leases.json": l.leaseFile})
	l.daemons[0].start()
	l.daemons[0].waitReady()
	n.start("--lease-file=/etc/twill/leases.json")
	must(t, l.SetPodMTU(l.daemons[0].status().Dataplane.Device.MTU))

	t.Run("it says which offloads the kernel has", func(t *testing.T) {
		device := n.status().Dataplane.Device
		if device.Kind != status.KindOffload || device.MTU != 1472 {
			t.Errorf("device %+v, want one with super-packets and MTU 1472", device)
		}
		o := n.offload("tun-offload")
		if !o.InForce || !strings.Contains(o.Why, "TSO4 TSO6") || !strings.HasSuffix(o.Why, "; USO needs Linux 6.2") {
			t.Errorf("%+v, want TSO4 and TSO6, and why there is no USO", o)
		}
		if o := n.offload("tun-gro"); !o.InForce || !strings.Contains(o.Why, "granted: TCP; UDP needs USO") {
			t.Errorf("%+v, want TCP, and why not UDP", o)
		}
		for _, name := range []string{"udp-gso", "udp-gro"} {
			if o := n.offload(name); !o.InForce {
				t.Errorf("%+v, want it in force", o)
			}
		}
	})
	tcp := func(from, to *netlab.Pod, addr netip.Addr) error {
		return streams{flows: 2, up: 16 << 20, limit: guestPatience}.run(from, to, addr)
	}
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		for _, into := range []bool{true, false} {
			from, to, addr, name := l.pod(0), l.pod(1), addr, "into the guest"
			if !into {
				from, to, addr, name = to, from, ofFamily(from, addr), "out of the guest"
			}
			if err := ping(from, addr, 1472); err != nil {
				t.Errorf("ping %s, as large as the MTU: %v", name, err)
			}
			for _, c := range []struct {
				what string
				load func(from, to *netlab.Pod, addr netip.Addr) error
				want mean
			}{{"TCP", tcp, many}, {"UDP", segmented, one}} {
				before := n.status()
				if err := c.load(from, to, addr); err != nil {
					t.Errorf("%s %s: %v", c.what, name, err)
				}
				if got := tunBatch(before, n.status(), into); !c.want.holds(got) {
					t.Errorf("%s %s: %.1f packets in a call on the TUN device, want %s", c.what, name, got, c.want)
				}
			}
		}
	})
}

// tunBatch is the mean number of packets in a call on the TUN device between two
// looks, of what has come from the network into the node or of what has left it.
func tunBatch(before, after *status.Document, into bool) float64 {
	tx, rx := directions(before)
	tx1, rx1 := directions(after)
	if into {
		tx, tx1 = rx, rx1
	}
	return float64(tx1.Packets-tx.Packets) / float64(max(1, tx1.TunCalls-tx.TunCalls))
}
