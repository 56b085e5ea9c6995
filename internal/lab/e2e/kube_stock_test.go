//go:build amd64

package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// stockKube runs stock flannel on nodes of a cluster, as flannel's manifest does.
type stockKube struct {
	*kubeLab
	dir, kubeconfig string
}

func newStockKube(t *testing.T, l *kubeLab) *stockKube {
	t.Helper()
	testkit.Must(t, buildStock())
	for _, d := range l.daemons {
		d.args = append(d.args, "--ip-masq", "--iptables-forward-rules=true")
	}
	return &stockKube{l, scratchDir(t), l.Kubeconfig(kubetest.FlannelToken)}
}

// run starts stock flannel on host number i.
func (s *stockKube) run(t *testing.T, i int) *stockNode {
	t.Helper()
	return runStockNode(t, s.Hosts[i].NS, []string{"NODE_NAME=" + s.node(i)}, s.env(i),
		"--kube-subnet-mgr", "--ip-masq", "--kubeconfig-file="+s.kubeconfig, "--net-config-path="+s.netConf)
}

// env is the path of stock's subnet.env on host number i.
func (s *stockKube) env(i int) string { return filepath.Join(s.dir, s.node(i)) }

// annotations are flannel's annotations of node number i, without those that only twill
// has.
func (s *stockKube) annotations(i int) map[string]string {
	all := s.Node(s.node(i)).OurAnnotations("flannel.alpha.coreos.com/")
	delete(all, "twill")
	return all
}

// ofANode is what other programs can see of flannel on a node.
type ofANode struct {
	annotations map[string]string
	rules, env  string
}

// rulesOfFlannel returns the firewall rules of a namespace that stock flannel has.
func rulesOfFlannel(t testing.TB, ns *netlab.Namespace) string {
	t.Helper()
	var rules strings.Builder
	for line := range strings.Lines(firewall(t, ns)) {
		if strings.HasPrefix(line, "-A ") && strings.Contains(line, `--comment "flanneld `) {
			rules.WriteString(line)
		}
	}
	return rules.String()
}

// Nodes of Kubernetes are changed one by one, from stock flannel to twilld and back,
// while a TCP connection stays in use. The annotations, firewall rules and subnet.env of
// stock flannel stay.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//
//	                 └── kube-apiserver
func TestKubeConnectionOutlivesARollingSwapFromStockFlannelAndBack(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "host-gw", "udp"} {
		t.Run(backend, func(t *testing.T) {
			l := newKubeLab(t, 2, fmt.Sprintf(`{"Type": %q}`, backend))
			s := newStockKube(t, l)
			stock, golden := make([]*stockNode, 2), make([]ofANode, 2)
			for i, h := range l.Hosts[:2] {
				l.Annotate(l.node(i), map[string]any{"example.com/any": ""}) // stock panics at a node without annotations
				stock[i] = s.run(t, i)
				golden[i] = ofANode{s.annotations(i), rulesOfFlannel(t, h.NS), textOf(t, s.env(i))}
				if !strings.Contains(golden[i].rules, "flanneld masq") || !strings.Contains(golden[i].rules, "flanneld forward") {
					t.Fatalf("stock flannel's rules are\n%s", golden[i].rules)
				}
			}
			testkit.Must(t, l.SetPodMTU(stock[0].mtu))
			same := func(i int, after, env string) {
				t.Helper()
				if got := s.annotations(i); !maps.Equal(got, golden[i].annotations) {
					t.Errorf("%s node %s is annotated with\n%v\nstock had written\n%v", after, l.Hosts[i].Letter, got, golden[i].annotations)
				}
				if got := rulesOfFlannel(t, l.Hosts[i].NS); got != golden[i].rules {
					t.Errorf("%s the rules of host %s are\n%s\nstock's were\n%s", after, l.Hosts[i].Letter, got, golden[i].rules)
				}
				if env != golden[i].env {
					t.Errorf("%s subnet.env of host %s is\n%s\nstock's was\n%s", after, l.Hosts[i].Letter, env, golden[i].env)
				}
			}
			stream := startStream(t, l.pod(0), l.pod(1))
			stream.passes(t, "between nodes of stock flannel")
			for i, d := range l.daemons {
				stock[i].stop(t)
				d.start()
				d.waitReady()
				l.sees(i, 2)
				stream.passes(t, "with twilld on host "+l.Hosts[i].Letter)
				same(i, "after twilld", d.env())
			}
			for i, d := range l.daemons {
				d.stop(syscall.SIGTERM)
				s.run(t, i)
				stream.passes(t, "with stock flannel again on host "+l.Hosts[i].Letter)
				same(i, "after stock", textOf(t, s.env(i)))
			}
			stream.stop(t)
		})
	}
}

// Stock flannel annotates a node, and twilld, which takes its place, does not change
// that. Then the annotations are removed, and twilld writes the same.
//
//	host a ─── host b: kube-apiserver
func TestKubeAnnotationsAreThoseThatStockFlannelWrites(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "vxlan"}`)
	s, d, h := newStockKube(t, l), l.daemons[0], l.Hosts[0]
	const (
		ipv4 = `"Network": "10.5.0.0/16"`
		ipv6 = `"EnableIPv6": true, "IPv6Network": "fd00:10:5::/48"`
		dual = ipv4 + ", " + ipv6
	)
	for _, tt := range []struct{ name, backend, network, overwrite string }{
		{"vxlan", "vxlan", ipv4, ""},
		{"vxlan, dual stack", "vxlan", dual, ""},
		{"vxlan, IPv6 only", "vxlan", `"EnableIPv4": false, ` + ipv6, ""},
		{"host-gw", "host-gw", ipv4, ""},
		{"host-gw, dual stack", "host-gw", dual, ""},
		{"host-gw, IPv6 only", "host-gw", `"EnableIPv4": false, ` + ipv6, ""},
		{"udp", "udp", ipv4, ""},
		{"an overwrite", "vxlan", ipv4, "203.0.113.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			user := map[string]string{"example.com/any": ""} // stock panics at a node without annotations
			if tt.overwrite != "" {
				user["flannel.alpha.coreos.com/public-ip-overwrite"] = tt.overwrite
			}
			l.DeleteNode(l.node(0))
			l.AddAnnotatedNode(l.node(0), user, h.Subnet.String(), h.Subnet6.String())
			l.configure(fmt.Sprintf(`{%s, "Backend": {"Type": %q}}`, tt.network, tt.backend))
			s.run(t, 0).kill()
			golden := s.annotations(0)
			if golden["kube-subnet-manager"] != "true" {
				t.Fatalf("stock flannel has written %v", golden)
			}
			d.start()
			defer d.stop(syscall.SIGTERM)
			d.waitReady()
			if got := s.annotations(0); !maps.Equal(got, golden) {
				t.Errorf("twilld has changed the annotations to\n%v\nstock's are\n%v", got, golden)
			}
			remove := map[string]any{"flannel.alpha.coreos.com/twill": nil}
			for key := range golden {
				if key != "public-ip-overwrite" {
					remove["flannel.alpha.coreos.com/"+key] = nil
				}
			}
			l.Annotate(l.node(0), remove)
			var got map[string]string
			testkit.Eventually(t, "twilld writes what stock had written", func() bool {
				got = s.annotations(0)
				return maps.Equal(got, golden)
			}, func() string { return fmt.Sprintf("%v\nstock's were\n%v", got, golden) })
		})
	}
}
