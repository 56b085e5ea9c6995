package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The tests of Kubernetes are called TestKube; "make test-kubernetes" runs them.

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── kube-apiserver, etcd
func TestKubePodsTalkAtFullMTU(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backend string
		flagsB  []string // of host b
		mtu     int
		kind    string // backend-type in the annotations of host a
		extra   string // in the annotation that stock does not have
	}{
		{`{"Type": "vxlan"}`, nil, 1450, "vxlan", ""},
		{`{"Type": "host-gw"}`, nil, 1500, "host-gw", ""},
		{`{"Type": "udp"}`, nil, 1472, "", `"PartialChecksums":true`},
		{`{"Type": "auto"}`, nil, 1450, "vxlan", `"Backends":["vxlan","udp"]`},
		{`{"Type": "auto"}`, []string{"--backend=udp"}, 1450, "vxlan", `"Backends":["vxlan","udp"]`}, // as without VXLAN
	} {
		t.Run(strings.TrimSpace(tt.backend+" "+strings.Join(tt.flagsB, " ")), func(t *testing.T) {
			l := newKubeLab(t, 2, tt.backend)
			l.daemons[1].args = append(l.daemons[1].args, tt.flagsB...)
			for _, d := range l.daemons {
				d.start()
			}
			for i, d := range l.daemons {
				d.waitReady()
				l.sees(i, 2)
			}
			testkit.Must(t, l.SetPodMTU(tt.mtu))
			l.pings(0, 1, tt.mtu)
			testkit.Eventually(t, "the condition of node-a is set", func() bool {
				return l.Node("node-a").Condition("NetworkUnavailable").Reason == "FlannelIsUp"
			})
			got := l.Node("node-a").OurAnnotations("flannel.alpha.coreos.com/")
			if got["backend-type"] != tt.kind || got["public-ip"] != l.Hosts[0].Addr.String() || !strings.Contains(got["twill"], tt.extra) {
				t.Errorf("node-a is annotated with %v", got)
			}
			for _, mine := range []string{"Backends", "PartialChecksums"} {
				if strings.Contains(got["backend-data"], mine) {
					t.Errorf("backend-data %s has %s, which stock cannot parse", got["backend-data"], mine)
				}
			}
		})
	}
}

// The API server is killed, and a daemon restarted meanwhile. With VXLAN no packet of
// pods is lost.
func TestKubePodsTalkThroughoutWhileTheAPIIsAway(t *testing.T) {
	t.Parallel()
	// Longer than the daemon waits for an API that answers and for one that does not:
	// 5 s for a request, 3 s at the start, up to 7.5 s between two attempts to watch, 10 s
	// to set the condition. The lease holder's pauses, of up to 30 s, do not matter here:
	// it makes requests only when the store requires it.
	const away = 20 * time.Second
	l := newKubeLab(t, 2, `{"Type": "vxlan"}`, "--healthz-port=8081")
	l.start()
	for i := range l.daemons {
		l.sees(i, 2)
	}
	testkit.Must(t, l.SetPodMTU(1450))
	l.pings(0, 1, 1450)
	flows := l.steady(0, 1)
	flows.pass(t, 100)
	written := l.daemons[0].env()

	l.Kill()
	for i := range l.daemons {
		testkit.Eventually(t, "status says that the API is away", func() bool { return l.away(i) != "" })
	}
	l.daemons[0].stop(syscall.SIGTERM)
	l.daemons[0].previous = written
	l.daemons[0].start()
	testkit.Eventually(t, "the daemon that was restarted is ready with the leases that it knew", func() bool {
		doc := l.daemons[0].tryStatus()
		return doc != nil && doc.Waiting == "" && doc.Source.Leases == 2
	})
	testkit.Eventually(t, "the API was away for a while", func() bool {
		doc := l.daemons[1].tryStatus()
		return doc != nil && time.Since(doc.Source.AwaySince) > away
	})
	for i, d := range l.daemons {
		if doc := d.status(); doc.Waiting != "" || doc.Source.Leases != 2 || doc.Source.AwaySince.IsZero() {
			t.Errorf("host %s: waiting for %q with %d leases, away since %s", l.Hosts[i].Letter, doc.Waiting, doc.Source.Leases, doc.Source.AwaySince)
		}
	}
	if got := l.daemons[0].env(); got != written {
		t.Errorf("subnet.env is\n%s, was\n%s", got, written)
	}
	if _, body, err := l.get("/metrics"); err != nil || !strings.Contains(body, "twill_lease_source_away_seconds ") || strings.Contains(body, "twill_lease_source_away_seconds 0\n") {
		t.Errorf("metrics do not say that the API is away: %v", err)
	}

	l.Restart()
	l.AddAnnotatedNode("node-z", map[string]string{
		"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/public-ip": "172.31.9.99",
		"flannel.alpha.coreos.com/backend-type": "vxlan", "flannel.alpha.coreos.com/backend-data": `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e4"}`,
	}, "10.5.99.0/24")
	for i := range l.daemons {
		l.sees(i, 3)
		testkit.Eventually(t, "status says that the API answers", func() bool { return l.away(i) == "" })
	}
	flows.pass(t, 100)
	flows.stop(t)
}

func TestKubeNodeThatIsMadeAgainMoves(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 2, `{"Type": "vxlan"}`)
	l.start()
	l.DeleteNode("node-a")
	l.daemons[0].waits("node-a")
	l.sees(1, 1)
	l.AddNode("node-a", "10.5.77.0/24")
	testkit.Eventually(t, "subnet.env has the new podCIDR", func() bool {
		return strings.Contains(l.daemons[0].env(), "FLANNEL_SUBNET=10.5.77.1/24") && l.daemons[0].status().Waiting == ""
	})
	l.sees(1, 2)
	if got := l.Node("node-a").OurAnnotations("flannel.alpha.coreos.com/")["kube-subnet-manager"]; got != "true" {
		t.Errorf("the node is annotated with %q", got)
	}
	testkit.Eventually(t, "the condition is set again", func() bool {
		return l.Node("node-a").Condition("NetworkUnavailable").Status == "False"
	})
}

func TestKubeOverwrittenAddressIsAnnouncedAtOnce(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 2, `{"Type": "udp"}`)
	l.start()
	for i := range l.daemons {
		l.sees(i, 2)
	}
	l.Annotate("node-a", map[string]any{"flannel.alpha.coreos.com/public-ip-overwrite": "172.31.9.200"})
	l.hasPeer(1, "172.31.9.200")
	if doc := l.daemons[0].status(); doc.Waiting != "" || doc.Lease.PublicIP != l.Hosts[0].Addr {
		t.Errorf("host a is at %s and waits for %q", doc.Lease.PublicIP, doc.Waiting)
	}
	l.Annotate("node-a", map[string]any{"flannel.alpha.coreos.com/public-ip-overwrite": nil})
	l.hasPeer(1, l.Hosts[0].Addr.String())
	l.pings(0, 1, 1472)
}

// hasPeer waits until host number i sends to one peer, at addr.
func (l *kubeLab) hasPeer(i int, addr string) {
	l.t.Helper()
	testkit.Eventually(l.t, fmt.Sprintf("host %s sends to %s", l.Hosts[i].Letter, addr), func() bool {
		doc := l.daemons[i].tryStatus()
		return doc != nil && doc.Dataplane != nil && len(doc.Dataplane.Peers) == 1 && doc.Dataplane.Peers[0].PublicIP.String() == addr
	})
}

func TestKubeTokenIsReplacedAndRightsAreTakenAndGivenBack(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 2, `{"Type": "vxlan"}`)
	token := l.netConf + ".token"
	testkit.Must(t, os.WriteFile(token, []byte(l.ServiceAccountToken("first")), 0o600))
	for i, d := range l.daemons {
		d.readKube(l.node(i), l.KubeconfigOf("tokenFile: "+token), l.netConf)
	}
	l.start()
	for i := range l.daemons {
		l.sees(i, 2)
	}
	testkit.Must(t, l.SetPodMTU(1450))
	l.pings(0, 1, 1450)

	testkit.Must(t, os.WriteFile(token, []byte(l.ServiceAccountToken("second")), 0o600))
	l.DeleteSecret("first")
	l.Kill() // the API server authenticates the client when a watch begins
	l.Restart()
	l.AddNode("node-y", "10.5.98.0/24")
	l.Annotate("node-y", map[string]any{"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/public-ip": "172.31.9.98"})
	for i := range l.daemons {
		l.sees(i, 3)
	}

	l.Revoke()
	l.Kill()
	l.Restart()
	for _, d := range l.daemons {
		d.waits("access to the leases")
		if got := d.status().Waiting; !strings.Contains(got, "ClusterRole flannel") {
			t.Errorf("it does not name the remedy: %s", got)
		}
	}
	l.pings(0, 1, 1450)
	l.Grant()
	l.DeleteNode("node-y")
	for i, d := range l.daemons {
		testkit.Eventually(t, "ready again", func() bool { return d.status().Waiting == "" })
		l.sees(i, 2)
	}
}

func TestKubeWaitsForWhatIsMissingAndNamesIt(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "vxlan"}`, "--healthz-port=8081")
	d := l.daemons[0]
	healthy := func() {
		t.Helper()
		code, _, err := l.get("/healthz")
		ready, _, err2 := l.get("/readyz")
		if err != nil || err2 != nil || code != 200 || ready != 503 {
			t.Errorf("healthz returns %d, readyz %d, %v, %v", code, ready, err, err2)
		}
	}
	good := l.Kubeconfig(kubetest.FlannelToken)
	broken := l.netConf + ".kubeconfig"
	d.readKube("node-a", broken, l.netConf)
	text, err := os.ReadFile(good)
	testkit.Must(t, err)
	for _, step := range []struct{ what, waits string }{
		{"", "read credentials: open " + broken},
		{"clusters: [", "use kubeconfig " + broken},
		{strings.Replace(string(text), "token: flannel", "exec: {apiVersion: client.authentication.k8s.io/v1, command: no-such-plugin, interactiveMode: Never}", 1), "users[].user.exec"},
		{strings.Replace(string(text), "token: flannel", "tokenFile: /nowhere/token", 1), "/nowhere/token"},
		{strings.Replace(string(text), "token: flannel", "token: nobody", 1), "check the user in " + broken},
	} {
		if step.what != "" {
			testkit.Must(t, os.WriteFile(broken, []byte(step.what), 0o600))
		}
		if d.cmd == nil {
			d.start()
			testkit.Eventually(t, "it answers", func() bool { return d.tryStatus() != nil })
		}
		d.waits(step.waits)
		healthy()
	}
	l.DeleteNode("node-a")
	testkit.Must(t, os.WriteFile(broken, text, 0o600))
	d.waits("no such node")
	l.AddNode("node-a")
	d.waits("--allocate-node-cidrs=true")
	l.DeleteNode("node-a")
	l.AddNode("node-a", "10.77.1.0/24")
	d.waits("outside the network 10.5.0.0/16")
	healthy()
	l.DeleteNode("node-a")
	l.AddNode("node-a", l.Hosts[0].Subnet.String())
	d.waitReady()

	l.configure(`{"Network": "10.5.0.0/16", "Backend": {"Tipe": "vxlan"}}`)
	d.waits("Backend")
	l.configure(`{"Netwrok": "10.5.0.0/16"}`)
	d.waits(`did you mean "Network"?`)
	testkit.Must(t, os.Remove(l.netConf))
	d.waits("put the key net-conf.json into the ConfigMap")
	l.configure(`{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`)
	testkit.Eventually(t, "ready again", func() bool { return d.status().Waiting == "" })
}
