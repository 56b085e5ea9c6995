package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// What keeps a node's pods from communicating is reported where an administrator looks
// first: "kubectl describe node".
func TestKubeNodeHasEventsOfWhatIsWrong(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "udp"}`)
	d := l.daemons[0]
	l.DeleteNode("node-a")
	l.AddNode("node-a")
	d.startWaiting("--allocate-node-cidrs=true")
	l.hasEvent("node-a", "Warning NoLease", "acquire lease of node node-a", "--cluster-cidr=10.5.0.0/16")
	subnet := l.Hosts[0].Subnet.String()
	l.PatchNode("node-a", map[string]any{"spec": map[string]any{"podCIDR": subnet, "podCIDRs": []string{subnet}}})
	d.waitReady()
	l.hasEvent("node-a", "Normal NetworkReady", subnet, "by udp")

	foreign := stockAnnotations("172.31.9.96")
	foreign["flannel.alpha.coreos.com/backend-type"] = "wireguard"
	l.AddAnnotatedNode("node-w", foreign, "10.5.96.0/24")
	const why = `its backend is "wireguard", which this node does not support`
	l.hasEvent("node-a", "Warning NoBackendForPeers", "10.5.96.0/24 of 172.31.9.96", why)
	if got := d.status().Dataplane.Unreached; len(got) != 1 || got[0].Subnet.String() != "10.5.96.0/24" || got[0].Why != why {
		t.Errorf("status has the subnets %+v without a backend", got)
	}
	if lines := d.stderr.Lines("peer cannot be reached"); len(lines) != 1 {
		t.Errorf("it is logged %d times, want once: %q", len(lines), lines)
	}
	l.DeleteNode("node-w")
	testkit.Eventually(t, "no subnet is without a backend", func() bool { return len(d.status().Dataplane.Unreached) == 0 })

	l.AddAnnotatedNode("node-x", stockAnnotations("172.31.9.97"), strings.Replace(subnet, "/24", "/25", 1))
	l.configure(`{"Network": "10.5.0.0/16", "Backend": {"Tipe": "udp"}}`)
	l.hasEvent("node-a", "Warning LeaseConflict", subnet)
	l.hasEvent("node-a", "Warning NetworkConfigRefused", `"Tipe"`, l.netConf)
	describe := l.Hosts[len(l.Hosts)-1].NS.Command(t.Context(), kubetest.Binary(t, "kubectl"), "--kubeconfig="+l.Kubeconfig("admin"), "describe", "node", "node-a")
	describe.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := describe.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "NetworkConfigRefused") {
		t.Errorf("kubectl describe node has no such event, %v:\n%s", err, out)
	}

	// An optional right: without it, only the events are missing.
	l.Withhold("events", "create")
	l.Withhold("events", "patch")
	l.DeleteNode("node-x")
	l.configure(`{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	testkit.Eventually(t, "the log names the right", func() bool {
		lines := d.stderr.Lines("cannot record Kubernetes events")
		return len(lines) == 1 && strings.Contains(lines[0], `resource \"events\"`)
	})
	if doc := d.status(); doc.Waiting != "" || !doc.Source.AwaySince.IsZero() {
		t.Errorf("without that right it waits for %q, and the API is away since %s", doc.Waiting, doc.Source.AwaySince)
	}
}

// hasEvent waits for an Event of a node of a type and reason whose message has all parts.
func (l *kubeLab) hasEvent(node, kind string, parts ...string) {
	l.t.Helper()
	var all []string
	testkit.Eventually(l.t, node+" has an event "+kind, func() bool {
		all = nil
		for _, e := range l.Events(node) {
			all = append(all, e.Type+" "+e.Reason+": "+e.Message)
		}
		return slices.ContainsFunc(all, func(text string) bool {
			return strings.HasPrefix(text, kind+": ") && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
		})
	}, func() string { return strings.Join(all, "\n") })
}
